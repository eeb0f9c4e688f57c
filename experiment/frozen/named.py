"""The run that a key of a config names, and how far another config agrees with its own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..config import Config, flatten
from ..saved_config import saved_config
from ..workdir import read_config


def place_of(named: str) -> tuple[Path, int | None]:
    """The work directory that a key names, and the step if it names one, as in "runs/x@1000"."""
    folder, _, step = named.rpartition("@")
    if folder and step.isdecimal() and not Path(named).expanduser().exists():
        return Path(folder).expanduser(), int(step)
    return Path(named).expanduser(), None


def config_of_run(named: str, key: str, needs: str) -> Config:
    """The config of a trained run.

    Args:
        named: Its work directory, or a checkpoint in it as in "runs/x@1000".
        key: The key that names it, such as "control.base".
        needs: Who needs it, such as "a ControlNet".

    Raises:
        ValueError: In one line, if there is no such run.
    """
    workdir, _ = place_of(named)
    if read_config(workdir) is None or not any((workdir / "checkpoints").glob("step_*")):
        raise ValueError(
            f"{key}={workdir} holds no trained run, which {needs} needs; train or import it first, or name its work "
            "directory"
        )
    return saved_config(workdir)


def check_same(config: Config, theirs: Config, key: str, *, free: tuple[str, ...], fix: str) -> None:
    """Refuse a config whose model or SDE is another than that of a frozen run.

    Args:
        config: The config.
        theirs: The run's.
        key: The key that names the run.
        free: Keys of ``config.model`` that may differ.
        fix: Advice at the end of the message.

    Raises:
        ValueError: In one line, naming the first key that both have, with another value.
    """
    ours = {name: value for name, value in config.model.to_dict().items() if name not in free}
    pairs: list[tuple[Mapping[str, Any], Mapping[str, Any], str]] = [
        (ours, theirs.model.to_dict(), "model."),
        (config.sde.to_dict(), theirs.sde.to_dict(), "sde."),
    ]
    for mine, its, section in pairs:
        known = dict(flatten(dict(its)))
        for name, value in flatten(dict(mine)):
            if name in known and value != known[name]:
                raise ValueError(f"config.{section}{name} is {value!r}, but {key} has {known[name]!r}; {fix}")
