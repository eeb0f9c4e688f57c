"""The config of a ControlNet in full: network, SDE and parameterization are those of its frozen model."""

from __future__ import annotations

from ml_collections import ConfigDict

from ..config import Config
from ..frozen.named import check_same, config_of_run, place_of
from .settings import check_is_controlled, is_controlled

# what a ControlNet may be trained with otherwise than its frozen model was
_OWN = ("condition_dropout", "part_dropout", "condition_noise_t")


def config_of_base(config: Config) -> Config:
    """The config of a ControlNet in full: network, SDE and parameterization are those of ``control.base``.

    Args:
        config: The config; unchanged where ``model.backbone`` is not "control".

    Raises:
        ValueError: In one line: there is no such run, or the config says otherwise than it; or settings of a ControlNet
            have no effect.
    """
    check_is_controlled(config)
    if "model" not in config or config.model.get("backbone", "unet") != "control":
        return config
    if not config.control.base:
        raise ValueError(
            "model.backbone=control needs the work directory of a trained model; set control.base, as "
            "configs/control/digits_edges.py does"
        )
    theirs = base_config(config)
    said = {key: value for key, value in config.model.to_dict().items() if key != "backbone"}
    whole = ConfigDict(config.to_dict() | {"model": {**theirs.model.to_dict(), **said}, "sde": theirs.sde.to_dict()})
    check_same_as_base(whole)
    whole.lock()
    return whole


def base_config(config: Config) -> Config:
    """The config of ``control.base``.

    Raises:
        ValueError: In one line, if there is no such run.
    """
    saved = config_of_run(config.control.base, "control.base", "a ControlNet")
    workdir, _ = place_of(config.control.base)
    if is_controlled(saved):
        raise ValueError(
            f"control.base={workdir} is a ControlNet itself; name its own base, and add it by control.also={workdir}"
        )
    return saved


def check_same_as_base(config: Config) -> None:
    """Refuse a ControlNet whose config says otherwise than that of its frozen model.

    Raises:
        ValueError: In one line, naming the first key.
    """
    fix = "leave it out, with model.backbone=control"
    check_same(config, base_config(config), "control.base", free=_OWN, fix=fix)
