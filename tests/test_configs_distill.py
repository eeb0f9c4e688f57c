"""Every config of a consistency model has the network of its teacher's config, and takes a step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.default import get_default_config
from data import ImageDataset
from experiment.build import build_model, build_sampler
from experiment.config import load_config
from experiment.config.checks import check_config, check_schedule
from experiment.distillation.teacher import _OWN
from experiment.frozen.named import check_same
from models import ConsistencyModel
from samplers import ConsistencySampler
from training.build import build_loss, build_options, build_state
from training.ema import ExponentialMovingAverage
from training.state import TrainingState
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
SHAPES = {"digits": (1, 8, 8, 17), "mnist": (1, 28, 28, 256)}
NAMES = sorted(
    path.stem
    for path in (ROOT / "configs" / "distill").glob("*.py")
    if "consistency" in path.read_text() and path.stem not in ("__init__", "family")
)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_has_the_network_of_its_teacher_and_takes_a_step(name: str):
    config = load_config(str(ROOT / "configs/distill" / f"{name}.py"), defaults=get_default_config())
    check_config(config)
    check_schedule(config)
    named = config.distillation.teacher
    theirs = load_config(str(ROOT / f"configs/{named.removeprefix('runs/')}.py"), defaults=get_default_config())
    check_same(config, theirs, named, free=_OWN, fix="")
    *shape, levels = SHAPES[config.data.dataset]
    images = torch.randint(levels, (4, *shape), dtype=torch.uint8)
    dataset = ImageDataset(images, torch.zeros(4, dtype=torch.int64), levels, 10, config.data.dataset, "train")
    with config.unlocked():
        config.training.update({"batch_size": 2, "num_steps": 1})
    teacher: Any = build_model(theirs, dataset.kind).eval().requires_grad_(False)
    config.distillation.teacher = ""
    model = build_model(config, dataset.kind)
    assert isinstance(model, ConsistencyModel)
    loss = build_loss(config, model.sde, dataset.kind, teacher)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    times = loss.time_sampler(model.sde, config.training.step_sampling)
    state = TrainingState(model, ExponentialMovingAverage(model, 0.9), optimizer, loss, times)
    result = Trainer(state, dataset, build_options(config)).step()
    assert not result.skipped and result.grad_norm > 0
    sampler = build_sampler(config)
    assert isinstance(sampler, ConsistencySampler) and sampler.num_steps == 2


def test_without_a_teacher_training_begins_anew():
    """A loss that asks no teacher has none, and weights that are drawn."""
    config = load_config(
        str(ROOT / "configs/vp/digits.py"),
        ["--config.model.answers=consistency", "--config.training.loss=consistency_training"],
        defaults=get_default_config(),
    )
    images = torch.zeros(4, 1, 8, 8, dtype=torch.uint8)
    kind = ImageDataset(images, torch.zeros(4, dtype=torch.int64), 17, 10, "digits", "train").kind
    state = build_state(config, kind, torch.device("cpu"))
    drawn = build_model(config, kind)
    ours, theirs = state.model.backbone.state_dict(), drawn.backbone.state_dict()
    assert state.teacher == "" and all(torch.equal(ours[name], theirs[name]) for name in ours)
