"""Plans: a checkpoint's model in the names of this framework, before any tensor is loaded."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data import RealSpace
from runtime.registry import choices_message
from sde_lib import SDE, make_sde

from ...backbones import ADM, MLP, Backbone, DiT, EncoderClassifier, NCSNpp, PriorTransformer, SpaceTimeDiT, UNet
from ...consistency import ConsistencyModel
from ...first_stage import Autoencoder, FirstStage
from ...noisy_classifier import NoisyClassifier
from ...parameterization import TimeInput, make_parameterization
from ...score_model import NetworkScoreModel
from .renaming import Source, load_renamed

BACKBONES: dict[str, type[Backbone]] = {
    "unet": UNet, "adm": ADM, "ncsnpp": NCSNpp, "dit": DiT, "mlp": MLP, "classifier": EncoderClassifier,
    "autoencoder": Autoencoder, "prior_transformer": PriorTransformer, "space_time": SpaceTimeDiT,
}  # fmt: skip


def default_options(backbone: str) -> dict[str, Any]:
    """A backbone's options and their defaults; ``inspect.Parameter.empty`` where there is none.

    Raises:
        ValueError: In one line, if there is no such backbone.
    """
    if backbone not in BACKBONES:
        raise ValueError(choices_message("backbone", backbone, sorted(BACKBONES)))
    return {p.name: p.default for p in inspect.signature(BACKBONES[backbone]).parameters.values()}


@dataclass(frozen=True)
class ModelPlan:
    """A model, described by plain values.

    Attributes:
        backbone: "unet", "adm", "ncsnpp", "prior_transformer", "classifier" or "autoencoder".
        network: The backbone's options; those that are left out take its defaults, so that it holds all of them.
        sde: The SDE's name, under ``name``, and its options; see ``sde_lib.make_sde``. An autoencoder does not use it.
        parameterization: What the network predicts; see ``make_parameterization``. Classifiers and autoencoders have
            none.
        time_input: What the network is told of t; see ``time_input``.
        answers: "posterior_mean", "flow" of a network that was trained on a flow's pairs, or "consistency".

    Raises:
        ValueError: In one line, if there is no such backbone.
    """

    backbone: str
    network: dict[str, Any]
    sde: dict[str, Any] = field(default_factory=lambda: {"name": "ddpm"})
    parameterization: str = "eps"
    time_input: TimeInput = "index"
    answers: str = "posterior_mean"

    def __post_init__(self) -> None:
        object.__setattr__(self, "network", default_options(self.backbone) | self.network)

    def build_backbone(self) -> Backbone:
        """The network, with new weights.

        Raises:
            ValueError: In one line, if there can be no such network.
        """
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

    def load(
        self, tensors: Mapping[str, Tensor], sources_of: Callable[[Any], Mapping[str, Source]], *, path: Path
    ) -> PlannedModel:
        """The model with the weights of a checkpoint, in evaluation mode.

        Args:
            tensors: Those of the checkpoint.
            sources_of: Finds the tensors of a network in the checkpoint; see ``load_renamed``.
            path: The file they are from, for the message.

        Raises:
            ValueError: In one line, if there can be no such model, or the tensors are of another.
        """
        model = self.build()
        load_renamed(model.backbone, tensors, sources_of(model.backbone), path=path)
        return model


class PlannedModel(NetworkScoreModel):
    """A network that knows by what plan it was built.

    Args:
        plan: The plan.

    Attributes:
        plan: The plan.
        notes: What its importer chose where the checkpoint left a choice, a line each.
        of_latents: True where the checkpoint shows that it is of an autoencoder's latents, not of pixels.
        latent_scale: Number that these were multiplied by, where the checkpoint says it.
        space: Mean and standard deviation of the vectors that a checkpoint is of; None of images.

    Raises:
        ValueError: In one line, if there can be no such model.
    """

    notes: tuple[str, ...] = ()
    of_latents: bool = False
    space: RealSpace | None = None
    latent_scale: float | None = None

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__(
            plan.build_backbone(),
            plan.build_sde(),
            make_parameterization(plan.parameterization, time_input=plan.time_input),
            learned_variance=plan.network["learned_variance"],
            answers="flow" if plan.answers == "flow" else "posterior_mean",
        )
        self.plan = plan


class PlannedConsistencyModel(ConsistencyModel):
    """A consistency model that knows by what plan it was built, with the boundary at t = 0 and a data_std of 0.5.

    Args:
        plan: The plan, which answers "consistency".

    Attributes:
        plan: The plan.
        notes: As of ``PlannedModel``.

    Raises:
        ValueError: In one line, if there can be no such model.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__(PlannedModel(plan))
        self.plan = plan


class PlannedClassifier(NoisyClassifier):
    """A classifier that knows by what plan it was built.

    Args:
        plan: The plan, whose backbone is "classifier".

    Attributes:
        plan: The plan.
        notes: As of ``PlannedModel``.

    Raises:
        ValueError: In one line, if there can be no such model.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, plan: ModelPlan) -> None:
        super().__init__(plan.build_backbone(), plan.build_sde(), time_input=plan.time_input)
        self.plan = plan


class PlannedFirstStage(FirstStage):
    """An autoencoder that knows by what plan it was built.

    Args:
        plan: The plan, whose backbone is "autoencoder".
        latent_scale: Number that its project multiplies latents by for their diffusion, which sees
            ``(z - latent_shift) latent_scale``; nonzero.
        latent_shift: Number that is subtracted before.

    Attributes:
        plan: The plan.
        latent_scale: See above.
        latent_shift: See above.
        notes: As of ``PlannedModel``.

    Raises:
        ValueError: In one line, if there can be no such model.
    """

    notes: tuple[str, ...] = ()

    def __init__(self, plan: ModelPlan, *, latent_scale: float = 1.0, latent_shift: float = 0.0) -> None:
        super().__init__(plan.build_backbone(), plan.build_sde())
        self.plan, self.latent_scale, self.latent_shift = plan, latent_scale, latent_shift


def plan_network(network: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The backbone for options of ``ADM``: ``UNet`` where it is the same network, else ``ADM``."""
    options = default_options("adm") | network
    mult = options["channel_mult"]
    whole = all(isinstance(one, int) for one in mult) and mult[:1] == (1,)
    if not whole or any(options[name] != value for name, value in UNet.fixed.items()):
        return "adm", network
    return "unet", {name: options[name] for name in default_options("unet")}


def scaled_linear(start: float, end: float, num_steps: int) -> dict[str, Any]:
    """The options of an SDE whose betas are the squares of evenly spaced numbers, as those of latent diffusions are.

    Raises:
        ValueError: If an end is not inside (0, 1).
    """
    check_betas(start, end)
    roots = torch.linspace(start**0.5, end**0.5, num_steps, dtype=torch.float64)
    return {"name": "betas", "betas": roots.square().tolist()}


def check_betas(start: float, end: float) -> None:
    """Refuse the ends of a schedule of betas.

    Raises:
        ValueError: If one is not inside (0, 1).
    """
    if not (0 < start < 1 and 0 < end < 1):
        raise ValueError(f"the scheduler's betas must be inside (0, 1), got {start:g} to {end:g}; correct them")
