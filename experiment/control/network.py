"""The network of a ControlNet: the frozen model with the copy that is trained."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data import AnyKind, ImageKind
from models import NetworkScoreModel
from models.backbones import ADM, ControlledBackbone, ControlNet

from ..checkpoints.weights import digest_of
from ..conditions import Conditions, build_conditions
from ..config import Config
from ..latents.first_stage import sees_latents
from .base_config import check_same_as_base


@dataclass(frozen=True)
class LoadedBase:
    """The frozen model of a ControlNet, from its work directory.

    Attributes:
        model: The model with its averaged weights, in evaluation mode.
        kind: The data that it is of.
        config: Its config.
        workdir: Its work directory.
    """

    model: NetworkScoreModel
    kind: AnyKind
    config: Config
    workdir: Path

    @property
    def digest(self) -> str:
        """Digest of its weights, by which a ControlNet knows it."""
        state = self.model.backbone.state_dict()
        return digest_of(*(state[name] for name in sorted(state)))


def build_controlled(config: Config, kind: AnyKind, base: LoadedBase) -> ControlledBackbone:
    """The frozen network with a new ControlNet.

    Args:
        config: The config, completed; see ``config_of_base``.
        kind: The data.
        base: The frozen model.

    Raises:
        ValueError: In one line: it is of other data or no U-Net, or is told other things besides the hint.
    """
    named = f"control.base={base.workdir}"
    check_same_as_base(config)
    _check_kind(config, kind, base, named)
    network = base.model.backbone
    if not isinstance(network, ADM) or not network.up:
        raise ValueError(
            f"a ControlNet is made of a unet or adm, got a {base.config.model.get('backbone', 'unet')} in {named}; "
            "take one of these"
        )
    learned = [
        name for name in ("sde", "dequantizer", "first_stage") if isinstance(getattr(base.model, name, None), nn.Module)
    ]
    if learned:
        raise ValueError(
            f"{named} learned its {' and '.join(learned)} too, which a ControlNet would train on; take another model"
        )
    conditions = build_conditions(config, kind, added=False)
    if config.model.get("condition_noise_t", 0.0):
        raise ValueError("a ControlNet is told clean hints, got model.condition_noise_t; leave it at 0")
    _check_told(conditions, build_conditions(base.config, base.kind), named)
    hint = ControlNet(
        network,
        hint_channels=conditions.network_options["cond_channels"],
        hint_widths=config.control.hint_widths,
    )
    return ControlledBackbone(network, [hint])


def _check_kind(config: Config, kind: AnyKind, base: LoadedBase, named: str) -> None:
    if sees_latents(config) or sees_latents(base.config):
        raise ValueError(f"a ControlNet is of pixels, got latents in {named}; take a model of pixels")
    if (kind.sample_shape, kind.space) != (base.kind.sample_shape, base.kind.space):
        raise ValueError(
            f"{named} is of other data, {list(base.kind.sample_shape)} in {base.kind.space}, got "
            f"{list(kind.sample_shape)} in {kind.space}; take a model of the same data"
        )
    if config.model.class_conditional and kind.num_classes != base.kind.num_classes:
        raise ValueError(
            f"{named} is told {base.kind.num_classes} classes, got data with {kind.num_classes}; take the same data"
        )
    told_text = "text" in base.config.data.get("condition", ())
    if told_text and isinstance(kind, ImageKind) and isinstance(base.kind, ImageKind) and kind.text != base.kind.text:
        raise ValueError(f"{named} reads captions in other words; take a model of the same data")


def _check_told(ours: Conditions, theirs: Conditions, named: str) -> None:
    if not ours.images:
        raise ValueError("a ControlNet needs a hint, an image; set data.condition=edges, gray, lowres or masked")
    if theirs.images:
        raise ValueError(f"{named} is told an image itself, the place of the hint; take a model that is told none")
    for what, mine, its in (
        ("captions", ours.text is not None, theirs.text is not None),
        ("values", bool(ours.values), bool(theirs.values)),
    ):
        if mine != its:
            raise ValueError(
                f"{named} is told {what if its else f'no {what}'}, got a config that says otherwise; set "
                "data.condition to its own conditions and the hint"
            )
