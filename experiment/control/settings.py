"""Settings of ControlNets."""

from __future__ import annotations

import math
from pathlib import Path

from ..config import Config
from ..workdir import read_config

_SIDES = ("both", "conditional")


def is_controlled(config: Config) -> bool:
    """Tell a ControlNet beside a frozen model from a model of its own."""
    return bool(config.get("control", {}).get("base", ""))


def added_controls(config: Config) -> list[tuple[Path, float]]:
    """Work directory and scale of each of ``control.also``.

    Raises:
        ValueError: In one line, if a scale is no number.
    """
    found = []
    for named in config.get("control", {}).get("also", ()):
        folder, _, scale = named.rpartition(":")
        try:
            weight = float(scale) if folder else 1.0
        except ValueError:
            raise ValueError(f"control.also={named} ends in no number after the colon; write runs/x:0.5") from None
        if not 0 <= weight < math.inf:
            raise ValueError(f"a scale in control.also must be at least 0, got {named}; write runs/x:0.5")
        found.append((Path(folder or named).expanduser(), weight))
    return found


def added_conditions(config: Config) -> list[tuple[tuple[str, ...], str]]:
    """The conditions of each of ``control.also`` with their options; what is told besides its hint is not in them.

    Raises:
        ValueError: In one line, if there is no run.
    """
    found = []
    for workdir, _ in added_controls(config):
        data = (read_config(workdir) or {}).get("data")
        if not isinstance(data, dict):
            raise ValueError(f"control.also={workdir} holds no trained run; name the work directory of a ControlNet")
        names = tuple(name for name in data.get("condition", ()) if name not in ("text", "values"))
        found.append((names, data.get("condition_options", "")))
    return found


def check_control(config: Config) -> None:
    """Refuse settings of ``config.control`` that cannot be.

    Raises:
        ValueError: In one line, naming the first.
    """
    control = config.control
    if control.guided not in _SIDES:
        raise ValueError(f"control.guided must be {' or '.join(_SIDES)}, got {control.guided!r}; choose one")
    if not 0 < control.decay <= 1:
        raise ValueError(f"control.decay must lie in (0, 1], got {control.decay:g}; 1 is none")


def check_is_controlled(config: Config) -> None:
    """Refuse settings of ControlNets where there is none, and they would have no effect.

    Raises:
        ValueError: In one line, naming the first.
    """
    control = config.get("control", {})
    for key, usual in (("scale", 1.0), ("decay", 1.0), ("also", ()), ("guided", "both")):
        if not is_controlled(config) and control.get(key, usual) != usual:
            raise ValueError(f"control.{key} is of a ControlNet, got a config without control.base; leave it out")
