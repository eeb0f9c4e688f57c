"""Configs of diffusion transformers: each is built, trains, and has the compute of the U-Net that it stands beside."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from data import ImageDataset, ImageKind, LatentSpace
from experiment.build import build_model, build_sampler
from experiment.conditions import build_conditions
from experiment.config import load_config
from experiment.config.checks import check_config
from experiment.network import build_backbone
from models.backbones import DiT
from training.build import build_loss, build_options, build_state
from training.trainer import Trainer

ROOT = Path(__file__).resolve().parent.parent
KINDS = {
    "digits": ImageKind((1, 8, 8), 17, 10),
    "mnist": ImageKind((1, 28, 28), 256, 10),
    "cifar10": ImageKind((3, 32, 32), 256, 10),
    "folder": ImageKind((3, 256, 256), 256, 1000),
}
LATENTS = {"cifar10": (4, 8, 8), "folder": (4, 32, 32)}
NAMES = ("digits", "dit_xl_2", "latent_cifar10", "mnist")


def config_and_kind(path: str, *overrides: str) -> tuple[Any, ImageKind]:
    config = load_config(str(ROOT / "configs" / f"{path}.py"), list(overrides))
    check_config(config)
    kind = KINDS[config.data.dataset]
    if config.data.first_stage:
        shape = LATENTS[config.data.dataset]
        kind = replace(kind, latents=LatentSpace(shape, (0.0,) * shape[0], (1.0,) * shape[0], 256, ""))
    return config, kind


def forward_flops(path: str) -> tuple[float, int]:
    """Operations of one image, forward, and the steps of the training."""
    config, kind = config_and_kind(path)
    network: nn.Module = copy.deepcopy(build_backbone(config, kind, outputs_per_channel=1)).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        network(torch.empty(1, *kind.sample_shape, device="meta"), torch.empty(1, device="meta"))
    return float(counter.get_total_flops()), config.training.num_steps


def test_the_promised_configs_are_there():
    assert {path.stem for path in (ROOT / "configs" / "dit").glob("*.py")} - {"__init__", "family"} == set(NAMES)


@pytest.mark.parametrize(
    ("ours", "beside", "ratio"),
    [("digits", "vp/digits", 0.87), ("mnist", "vp/mnist", 1.02), ("latent_cifar10", "latent/cifar10", 0.92)],
)
def test_trainings_take_the_operations_of_those_of_the_unets(ours: str, beside: str, ratio: float):
    (flops, steps), (their_flops, their_steps) = forward_flops(f"dit/{ours}"), forward_flops(beside)
    assert flops / their_flops == pytest.approx(ratio, abs=0.006)
    assert flops * steps == pytest.approx(their_flops * their_steps, rel=0.01)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dit_xl_2"])
def test_a_step_begins_at_the_loss_of_a_network_that_answers_zero(name: str):
    config, kind = config_and_kind(f"dit/{name}", "--config.training.batch_size=8", "--config.model.network.depth=2")
    build_sampler(config)
    levels, shape = (kind.num_levels, kind.image_shape) if kind.latents is None else (2, kind.sample_shape)
    images = torch.randint(levels, (24, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    state = build_state(config, kind, torch.device("cpu"))
    assert isinstance(state.model.backbone, DiT)
    options = replace(build_options(config), warmup_steps=0)
    if kind.latents is not None:
        loss, x0 = build_loss(config, state.model.sde, kind), 2.0 * images[:8] - 1
        t = loss.times(state.model.sde, torch.linspace(0.1, 0.9, 8))
        # v = 0 is alpha x_t of x0 and sigma x_t of eps
        x_t = state.model.sde.perturb(x0, t, eps := torch.randn_like(x0))
        expected = (state.model.sde.sigma(t)[:, None, None, None] * x_t - eps).square().flatten(1).mean(1)
        found = loss(state.model, x0, t, eps)
        torch.testing.assert_close(found.double(), expected.double(), rtol=1e-4, atol=1e-5)
        return
    dataset = ImageDataset(images, torch.arange(24) % 10, levels, 10, config.data.dataset, "train")
    trainer = Trainer(state, dataset, options, conditions=build_conditions(config, kind))
    before = {name: value.clone() for name, value in state.model.state_dict().items()}
    # of v = 0, sigma^2 eps error of data of variance near 1, on the mean over all times
    assert 0.05 < trainer.step().loss < 0.5
    assert any(not torch.equal(before[name], value) for name, value in state.model.state_dict().items())


def test_the_large_one_is_the_paper_s():
    config, kind = config_and_kind("dit/dit_xl_2")
    with torch.device("meta"):
        network = build_backbone(config, kind, outputs_per_channel=1)
    assert isinstance(network, DiT) and network.positions is not None
    count = sum(weights.numel() for weights in network.parameters())
    assert count + network.positions.numel() == 675_129_632
    # one that is small enough to be built takes its loss, with the variance of latents
    config, kind = config_and_kind("dit/dit_xl_2", "--config.model.channels=32", "--config.model.network.depth=1")
    model = build_model(config, kind)
    loss = build_loss(config, model.sde, kind)
    x0, cond = torch.randn(2, 4, 32, 32), torch.tensor([3, -1])
    loss(
        model, x0, loss.times(model.sde, torch.tensor([0.0005, 0.7])), torch.randn_like(x0), cond=cond
    ).sum().backward()
    gradient = model.get_parameter("backbone.last.linear.bias").grad
    assert gradient is not None and bool((gradient.unflatten(0, (4, 8)).abs().sum(0) > 0).all())
