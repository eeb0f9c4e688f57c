"""The teacher of a distillation: its config, its model, and a student that begins with its weights."""

from __future__ import annotations

from pathlib import Path

import torch
from ml_collections import ConfigDict

from data import AnyKind
from models import NetworkModel

from ..config import Config
from ..from_checkpoints import load_frozen
from ..frozen.named import check_same, config_of_run
from ..frozen.run import FrozenRun, check_fixed_besides, check_same_data
from ..saved_config import saved_config
from ..workdir import read_config

_KEY = "distillation.teacher"
# what a student may be trained with otherwise than its teacher was
_OWN = ("answers", "condition_dropout", "dropout", "gradient_checkpointing", "parameterization", "part_dropout")


def teacher_of(config: Config) -> str:
    """The run that ``distillation.teacher`` names, as it is written there; "" for none."""
    return config.get("distillation", {}).get("teacher", "")


def config_of_teacher(config: Config, workdir: Path) -> Config:
    """The config of a student in full: network, SDE and parameterization are those of its teacher.

    Args:
        config: The config; unchanged where ``model.backbone`` is not "teacher".
        workdir: The student's work directory. Once it has a run, the teacher is not looked for.

    Raises:
        ValueError: In one line: there is no teacher, or the config says otherwise than it.
    """
    if "model" not in config or config.model.get("backbone", "unet") != "teacher":
        return config
    begun = read_config(workdir) is not None and any((workdir / "checkpoints").glob("step_*"))
    if not begun and not teacher_of(config):
        raise ValueError(
            "model.backbone=teacher stands for the network of a trained model, got no distillation.teacher; set it to "
            "a work directory"
        )
    theirs = saved_config(workdir) if begun else config_of_run(teacher_of(config), _KEY, "a student")
    said = {key: value for key, value in config.model.to_dict().items() if key != "backbone"}
    whole = ConfigDict(config.to_dict() | {"model": {**theirs.model.to_dict(), **said}, "sde": theirs.sde.to_dict()})
    whole.lock()
    return whole


def load_teacher(config: Config, kind: AnyKind, device: torch.device) -> FrozenRun | None:
    """The teacher with its averaged weights, in evaluation mode and without gradients; None where none is named.

    Args:
        config: The student's config, in full.
        kind: Its data.
        device: Where the teacher goes.

    Raises:
        ValueError: In one line: there is no such run, it answers no score, or it has another network, SDE or data.
    """
    named = teacher_of(config)
    if not named:
        return None
    theirs, said = config_of_run(named, _KEY, "a student"), f"{_KEY}={named}"
    check_same(config, theirs, said, free=_OWN, fix="leave it out, with model.backbone=teacher")
    ours, its = (tuple(one.data.get("condition", ())) for one in (config, theirs))
    if ours != its:
        raise ValueError(
            f"{said} is told {','.join(its) or 'no condition'}, got data.condition={','.join(ours)}; set "
            f"data.condition={','.join(its)}"
        )
    run = load_frozen(named, theirs, device)
    check_same_data(config, kind, run, said)
    check_fixed_besides(run, said)
    return run


def begin_as(model: NetworkModel, teacher: FrozenRun) -> None:
    """Give a student the weights of its teacher; nothing is drawn."""
    model.backbone.load_state_dict(teacher.model.backbone.state_dict())
