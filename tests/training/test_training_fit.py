"""Training from Python: on tensors and data sets, without a config."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import last_tensors, tiny_command
from torch import Tensor

import main
from data import DataError, TensorDataset, load_dataset
from experiment import load_run
from experiment.build import build_model
from models import EpsParameterization, NetworkScoreModel
from models.backbones import MLP, UNet
from samplers import DDIMSampler
from sde_lib import VP, Tabulated
from training import fit


def _mlp(num_classes: int | None = None) -> NetworkScoreModel:
    torch.manual_seed(0)
    network = MLP(1, hidden=32, num_classes=num_classes)
    return NetworkScoreModel(network, VP(), EpsParameterization(time_input="log_snr"))


def test_it_is_the_training_of_the_command_to_the_bit(tmp_path: Path):
    assert main.run(tiny_command("train", tmp_path, "--config.training.precision=fp32")) == 0
    run = load_run(tmp_path, device="cpu")
    config = run.config
    model = build_model(config, run.kind)
    trained = fit(
        model,
        load_dataset("digits", root=".", split="train"),
        steps=6,
        loss=config.training.loss,
        batch_size=8,
        learning_rate=config.optim.learning_rate,
        warmup_steps=2,
        ema_decay=config.training.ema_decay,
        seed=config.seed,
        device="cpu",
    )
    saved = last_tensors(tmp_path)
    for name, tensor in model.backbone.state_dict().items():
        assert torch.equal(tensor, saved[f"model.{name}"]), name
    for name, tensor in trained.backbone.state_dict().items():
        assert torch.equal(tensor, saved[f"ema.{name}"]), name
    assert not trained.training


def _moments(model: NetworkScoreModel, cond: Tensor | None = None) -> tuple[float, float]:
    x_T = torch.randn(2000, 1, generator=torch.Generator().manual_seed(1))
    x0 = DDIMSampler(num_steps=20).sample(model, x_T, cond=cond).x0
    return float(x0.mean()), float(x0.std())


def test_floats_are_learned_as_they_are():
    """N(0.5, 0.2^2) comes back; a standardized copy of it would not."""
    x = 0.5 + 0.2 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))
    mean, std = _moments(fit(_mlp(), x, steps=500, learning_rate=3e-3, warmup_steps=20, device="cpu"))
    assert mean == pytest.approx(0.5, abs=0.08) and std == pytest.approx(0.2, abs=0.08)


def test_labels_reach_the_network():
    x = torch.cat([torch.full((500, 1), -1.0), torch.full((500, 1), 1.0)])
    labels = torch.arange(1000) // 500
    model = fit(_mlp(num_classes=2), x, labels=labels, steps=400, learning_rate=3e-3, device="cpu")
    for label, place in ((0, -1.0), (1, 1.0)):
        assert _moments(model, torch.full((2000,), label))[0] == pytest.approx(place, abs=0.25)


def test_uint8_images_are_seen_in_model_space(monkeypatch: pytest.MonkeyPatch):
    """White images: x0 is 1 for the network, and L_simple is that of a network that says 0."""
    seen: list[Tensor] = []
    network = UNet(image_size=8, in_channels=1, channels=8, norm_groups=4, channel_mult=(1,), attention_resolutions=())
    model = NetworkScoreModel(network, Tabulated.ddpm(), EpsParameterization())
    forward = UNet.forward

    def record(self: UNet, x: Tensor, *arguments: Any) -> Tensor:
        seen.append(x.detach())
        return forward(self, x, *arguments)

    monkeypatch.setattr(UNet, "forward", record)
    fit(model, torch.full((16, 1, 8, 8), 255, dtype=torch.uint8), steps=1, batch_size=400, device="cpu")
    # E[alpha] over the table's timesteps, since the noise has mean 0
    alpha = model.sde.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000).mean()
    assert float(seen[0].mean()) == pytest.approx(float(alpha), abs=0.05)


@pytest.mark.parametrize(
    ("data", "labels", "classes", "message"),
    [
        (torch.zeros(0, 1), None, None, "floats"),
        (torch.zeros(3, 1, dtype=torch.int64), None, None, "pass images as uint8"),
        (torch.tensor([[float("nan")], [1.0]]), None, None, "1 of 2 samples are not finite"),
        (torch.zeros(3, 1), torch.zeros(3), 2, "labels must be torch.int64"),
        (torch.zeros(3, 1), torch.zeros(3, dtype=torch.int64), None, "labels need a network that is told them"),
        (torch.zeros(3, 1), None, 2, "a network of 2 classes needs labels, got None"),
        (torch.zeros(3, 1), torch.tensor([0, 1, 2]), 2, "cond must be in 0 .. 1"),
    ],
)
def test_refusals(data: Tensor, labels: Tensor | None, classes: int | None, message: str):
    with pytest.raises((ValueError, DataError), match=message) as caught:
        fit(_mlp(classes), data, labels=labels, steps=2, device="cpu")
    assert "\n" not in str(caught.value)


def test_a_tensor_data_set_checks_its_labels():
    with pytest.raises(DataError, match=r"labels must be 0 .. 1, got 5; correct the labels or num_classes"):
        TensorDataset(torch.zeros(2, 3), torch.tensor([0, 5]), num_classes=2)
