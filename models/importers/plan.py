"""What a checkpoint's settings say of the model, in the names of this framework, before any tensor is read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from sde_lib import choices_message, make_sde

from ..backbones import ADM, NCSNpp, UNet
from ..parameterization import TimeInput, make_parameterization
from ..score_model import NetworkScoreModel

_BACKBONES: dict[str, type[nn.Module]] = {"unet": UNet, "adm": ADM, "ncsnpp": NCSNpp}


@dataclass(frozen=True)
class ModelPlan:
    """A model, described by plain values.

    Attributes:
        backbone: "unet", "adm" or "ncsnpp".
        network: Keyword arguments of the backbone.
        sde: The SDE's name, under ``name``, and its options; see ``sde_lib.make_sde``.
        parameterization: What the network predicts; see ``make_parameterization``.
        noise_input: What the network is told of t; see ``time_input``.
    """

    backbone: str
    network: dict[str, Any]
    sde: dict[str, Any] = field(default_factory=lambda: {"name": "ddpm"})
    parameterization: str = "eps"
    noise_input: TimeInput = "index"

    def build_backbone(self) -> UNet | ADM | NCSNpp:
        """The network, with new weights.

        Raises:
            ValueError: In one line, if there can be no such network.
        """
        if self.backbone not in _BACKBONES:
            raise ValueError(choices_message("backbone", self.backbone, sorted(_BACKBONES)))
        backbone = _BACKBONES[self.backbone](**self.network)
        assert isinstance(backbone, UNet | ADM | NCSNpp)
        return backbone

    def build(self) -> NetworkScoreModel:
        """The model, with new weights and in evaluation mode.

        Raises:
            ValueError: In one line, if there can be no such model.
        """
        options = {name: value for name, value in self.sde.items() if name != "name"}
        model = NetworkScoreModel(
            self.build_backbone(),
            make_sde(self.sde["name"], **options),
            make_parameterization(self.parameterization, noise_input=self.noise_input),
            learned_variance=bool(self.network.get("learned_variance", False)),
        )
        return model.eval()


def plan_network(network: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The backbone for arguments of ``ADM``: ``UNet`` where it is the same network, else ``ADM``."""
    only_adm = {
        "resampling": "convolution",
        "floor_heads": False,
        "middle_attention": True,
        "middle_attention_norm": True,
        "norm_group_channels": 1,
        "embedding_dim": None,
        "up_attention_resolutions": None,
    }
    mult = network["channel_mult"]
    fits = all(network.get(name, value) == value for name, value in only_adm.items() if name != "resampling")
    whole = all(isinstance(one, int) for one in mult) and mult[0] == 1
    if not (fits and whole and network.get("resampling") == "convolution"):
        return "adm", network
    return "unet", {name: value for name, value in network.items() if name not in only_adm}
