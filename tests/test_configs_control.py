"""Every config of a ControlNet fits the config of its frozen model, and three steps reach all of its parameters."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.default import get_default_config
from data import ImageKind, TextKind
from experiment.build import build_model
from experiment.conditions import Observed, build_conditions
from experiment.config import Config, load_config
from experiment.config.checks import check_config
from experiment.control.base_config import config_of_base
from experiment.frozen.run import FrozenRun
from models import NetworkScoreModel
from models.backbones import ControlledBackbone

ROOT = Path(__file__).resolve().parent.parent
WORDS = TextKind(vocabulary=("a", "red", "three"))
KINDS = {
    "runs/vp/digits": ImageKind((1, 8, 8), 17, 10),
    "runs/vp/mnist": ImageKind((1, 28, 28), 256, 10),
    "runs/vp/cifar10": ImageKind((3, 32, 32), 256, 10),
    "runs/text/scenes": ImageKind((3, 16, 16), 17, text=WORDS),
}
NAMES = sorted(
    path.stem for path in (ROOT / "configs" / "control").glob("*.py") if path.stem not in ("__init__", "family")
)


def controlled(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Config, FrozenRun, NetworkScoreModel]:
    """A config in full, its frozen model with new weights, and its model."""
    config = load_config(str(ROOT / "configs/control" / f"{name}.py"), defaults=get_default_config())
    workdir = config.control.base
    theirs = load_config(str(ROOT / f"configs/{workdir.removeprefix('runs/')}.py"), defaults=get_default_config())
    monkeypatch.setattr("experiment.control.base_config.base_config", lambda _: theirs)
    config, kind = config_of_base(config), KINDS[workdir]
    check_config(config)
    frozen: Any = build_model(theirs, kind)
    base = FrozenRun(frozen, kind, theirs, Path(workdir))
    model = build_model(config, kind, base=base)
    assert isinstance(model, NetworkScoreModel)
    return config, base, model


@pytest.mark.parametrize("name", NAMES)
def test_it_has_the_network_of_its_frozen_model(name: str, monkeypatch: pytest.MonkeyPatch):
    config, base, model = controlled(name, monkeypatch)
    assert config.model.to_dict() == base.config.model.to_dict() and config.sde == base.config.sde
    assert isinstance(model.backbone, ControlledBackbone) and model.backbone.base is base.model.backbone
    assert [maker.threshold for maker in build_conditions(config, base.kind).images]  # pyright: ignore


@pytest.mark.parametrize("name", [name for name in NAMES if name != "cifar10_edges"])
def test_three_steps_reach_all_parameters(name: str, monkeypatch: pytest.MonkeyPatch):
    torch.manual_seed(0)
    config, base, model = controlled(name, monkeypatch)
    with torch.no_grad():
        # a trained network answers: a new one ends in zeros, which no gradient passes
        for parameter in base.model.backbone.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    kind, optimizer = base.kind, torch.optim.Adam(model.backbone.parameters(), lr=1e-2)
    assert isinstance(kind, ImageKind)
    images = torch.randint(kind.num_levels, (2, *kind.image_shape), dtype=torch.uint8)
    observed = build_conditions(config, kind).images[0].observe(images, kind)
    texts = {"words": torch.tensor([[1, 2, 3], [3, 0, 0]])} if kind.text else {}
    cond = build_conditions(config, kind).tell(Observed((observed,), texts=texts))
    moved: set[str] = set()
    for _ in range(3):
        x_t, t = torch.randn(2, *kind.image_shape), torch.tensor([0.3, 0.7], dtype=torch.float64)
        optimizer.zero_grad()
        model.train()(x_t, t, cond=cond).eps.square().mean().backward()
        optimizer.step()
        moved |= {name for name, one in model.backbone.named_parameters() if one.grad is not None and one.grad.any()}
    left = {name for name, _ in model.backbone.named_parameters()} - moved
    # what stands in place of no text, of which there is none here
    assert all("no_pooled" in one for one in left), left
