"""Reads the settings of ControlNets and of distillations from what is built of them."""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from control_runs import HINT, control_command
from tiny import tiny_command

import main
from experiment import load_run
from experiment.config import Config
from experiment.control.network import build_controlled
from experiment.distillation.teacher import load_teacher
from experiment.from_checkpoints import load_base, load_trained, trained_kind
from experiment.guidance import sampled_model
from models import GuidedScoreModel
from models.backbones import ControlledBackbone
from samplers import make_sampler
from training.build import build_loss

FOLDER = Path(tempfile.mkdtemp(prefix="control-"))
atexit.register(shutil.rmtree, FOLDER, ignore_errors=True)
BASE, CONTROL = FOLDER / "base", FOLDER / "control"
NEEDS = (
    *(setting.removeprefix("--config.") for setting in HINT),
    *(f"control.base={BASE}", "control.hint_widths=4,8"),
)
GROUPS = "--config.model.norm_groups=8"


@cache
def train() -> None:
    """Train a base and a ControlNet for a moment."""
    assert main.run(tiny_command("train", BASE, GROUPS)) == 0
    assert main.run(control_command("train", CONTROL, BASE, GROUPS)) == 0


def controlled(read: Callable[[ControlledBackbone], Any]) -> Callable[[Any, Config], Any]:
    """Read the network that is sampled and measured."""

    def found(_: Any, config: Config) -> Any:
        train()
        kind = trained_kind(config, CONTROL)
        network = load_trained(config, CONTROL, kind, torch.device("cpu"))[0].backbone
        assert isinstance(network, ControlledBackbone)
        return read(network)

    return found


def based(_: Any, config: Config) -> Any:
    """The weights that are frozen; None without."""
    train()
    base = load_base(config, torch.device("cpu"))
    return base and base.workdir


def taught(_: Any, config: Config) -> Any:
    """The teacher; None without."""
    train()
    teacher = load_teacher(config, trained_kind(config, BASE), torch.device("cpu"))
    return teacher and teacher.workdir


def distilling(name: str) -> Callable[[Any, Config], Any]:
    """Read an option of the loss of a distillation."""

    def found(_: Any, config: Config) -> Any:
        train()
        teacher = load_run(BASE).model
        return getattr(build_loss(config, teacher.sde, trained_kind(config, BASE), teacher), name)

    return found


def stem_widths(_: Any, config: Config) -> list[int]:
    """The widths of the layers of a new ControlNet's stem."""
    train()
    base = load_base(config, torch.device("cpu"))
    assert base is not None
    stem = build_controlled(config, base.kind, base).networks[0].stem
    return [stem.layers[0].out_channels, *(layer.out_channels for layer in list(stem.layers)[2::2])]  # pyright: ignore


def keeps_hint(_: Any, config: Config) -> bool:
    """True if guidance tells the hint on both sides."""
    train()
    run = load_run(CONTROL)
    model = sampled_model(config, run.model, run.kind, make_sampler("ddim", num_steps=2), run.model)
    (guided,) = (one for one in model.modules() if isinstance(one, GuidedScoreModel))
    return guided.keeps_image
