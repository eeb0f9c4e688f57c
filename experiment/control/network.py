"""The network of a ControlNet: the frozen model with the copy that is trained."""

from __future__ import annotations

from data import AnyKind
from models.backbones import ADM, ControlledBackbone, ControlNet

from ..conditions import Conditions, build_conditions
from ..config import Config
from ..frozen.run import FrozenRun, check_fixed_besides, check_same_data
from ..latents.first_stage import sees_latents
from .base_config import check_same_as_base


def build_controlled(config: Config, kind: AnyKind, base: FrozenRun) -> ControlledBackbone:
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
    if sees_latents(config) or sees_latents(base.config):
        raise ValueError(f"a ControlNet is of pixels, got latents in {named}; take a model of pixels")
    check_same_data(config, kind, base, named)
    network = base.model.backbone
    if not isinstance(network, ADM) or not network.up:
        raise ValueError(
            f"a ControlNet is made of a unet or adm, got a {base.config.model.get('backbone', 'unet')} in {named}; "
            "take one of these"
        )
    check_fixed_besides(base, named)
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
