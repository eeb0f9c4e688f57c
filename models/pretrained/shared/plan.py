"""Plans: a checkpoint's model in the names of this framework, before any tensor is loaded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from runtime.registry import choices_message
from sde_lib import SDE, make_sde

from ...backbones import (
    ADM,
    MLP,
    NCSNpp,
    UNet,
)
from ...parameterization import TimeInput, make_parameterization
from ...score_model import NetworkScoreModel

Backbone = UNet | ADM | NCSNpp | MLP
BACKBONES: dict[str, type[Backbone]] = {"unet": UNet, "adm": ADM, "ncsnpp": NCSNpp, "mlp": MLP}


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

    def build_backbone(self) -> Backbone:
        """The network, with new weights.

        Raises:
            ValueError: In one line, if there can be no such network.
        """
        if self.backbone not in BACKBONES:
            raise ValueError(choices_message("backbone", self.backbone, sorted(BACKBONES)))
        return BACKBONES[self.backbone](**self.network)

    def build_sde(self) -> SDE:
        """The SDE.

        Raises:
            ValueError: In one line, if there is no such SDE.
        """
        return make_sde(**self.sde)

    def build(self) -> PlannedModel:
        """The model, with new weights and in evaluation mode.

        Raises:
            ValueError: In one line, if there can be no such model.
        """
        return PlannedModel(self).eval()


class PlannedModel(NetworkScoreModel):
    """A network that knows by what plan it was built.

    Args:
        plan: The plan.

    Attributes:
        plan: The plan.
        notes: What its importer chose where the checkpoint left a choice, a line each.

    Raises:
        ValueError: In one line, if there can be no such model.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__(
            plan.build_backbone(),
            plan.build_sde(),
            make_parameterization(plan.parameterization, noise_input=plan.noise_input),
            learned_variance=bool(plan.network.get("learned_variance", False)),
        )
        self.plan = plan


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
    whole = all(isinstance(one, int) for one in mult) and mult[:1] == (1,)
    if not (fits and whole and network.get("resampling") == "convolution"):
        return "adm", network
    return "unet", {name: value for name, value in network.items() if name not in only_adm}
