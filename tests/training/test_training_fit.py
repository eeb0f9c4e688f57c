"""Training from Python: on tensors and data sets, without a config."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import last_tensors, tiny_command
from torch import Tensor, nn

import main
from data import DataError, TensorDataset, load_dataset
from experiment import load_run
from experiment.build import build_model
from models import EpsParameterization, NetworkScoreModel
from models.backbones import MLP, UNet
from models.parameterization import TimeInput
from runtime.processes.rank_slice import RankSlice
from samplers import DDIMSampler
from sde_lib import SDE, VP, LearnedVP, Tabulated
from training import fit
from training.batches import Batches
from training.losses import ContinuousBoundLoss, DDPMLoss, VariationalLoss


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


@pytest.mark.slow
def test_floats_are_learned_as_they_are():
    """N(0.5, 0.2^2) comes back; a standardized copy of it would not."""
    x = 0.5 + 0.2 * torch.randn(4000, 1, generator=torch.Generator().manual_seed(2))
    mean, std = _moments(fit(_mlp(), x, steps=300, learning_rate=3e-3, warmup_steps=20, device="cpu"))
    assert mean == pytest.approx(0.5, abs=0.08) and std == pytest.approx(0.2, abs=0.08)


def test_labels_reach_the_network():
    x = torch.cat([torch.full((500, 1), -1.0), torch.full((500, 1), 1.0)])
    labels = torch.arange(1000) // 500
    model = fit(_mlp(num_classes=2), x, labels=labels, steps=250, learning_rate=3e-3, device="cpu")
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


def _images(count: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def _unet(sde: SDE, *, learned_variance: bool = False, time_input: TimeInput = "auto") -> NetworkScoreModel:
    network = UNet(
        image_size=8,
        in_channels=1,
        channels=8,
        norm_groups=4,
        channel_mult=(1,),
        attention_resolutions=(),
        learned_variance=learned_variance,
    )
    parameterization = EpsParameterization(time_input=time_input)
    return NetworkScoreModel(network, sde, parameterization, learned_variance=learned_variance)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (
            _unet(Tabulated.ddpm(), learned_variance=True),
            {},
            "model.learned_variance needs a loss that trains it",
        ),
        (_unet(LearnedVP(), time_input="log_snr"), {}, "a learned noise schedule needs loss 'vlb_continuous'"),
        (_unet(LearnedVP()), {"loss": "vlb_continuous"}, "a learned noise schedule moves t"),
        (_unet(VP()), {"loss": ContinuousBoundLoss()}, "needs num_levels, got None"),
        (_unet(VP()), {"loss": DDPMLoss()}, "needs an SDE with a table"),
        (_unet(Tabulated.ddpm()), {"loss": VariationalLoss(num_levels=17)}, "of 17 grey levels, the data of 256"),
        (_unet(VP()), {"loss": DDPMLoss}, "loss must be a name or a Loss"),
        (_unet(VP()), {"log_every": 0}, "log_every must be at least 1"),
        (_unet(VP()), {"batch_size": 2.5}, "batch_size must be at least 1, a whole number"),
        (_unet(VP()), {"learning_rate": float("nan")}, "learning_rate must be at least 0 and finite"),
    ],
)
def test_what_would_train_wrongly_is_refused(model: NetworkScoreModel, options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        fit(model, _images(), steps=2, device="cpu", **options)
    assert "\n" not in str(caught.value)


def test_weights_that_are_not_finite_are_no_result():
    with pytest.raises(FloatingPointError, match="not finite"):
        fit(_unet(VP()), _images(), steps=3, batch_size=8, learning_rate=1e38, grad_clip=0, device="cpu")


def test_a_trained_model_is_trained_on_and_the_caller_s_random_numbers_stay():
    model = _unet(VP())
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    trained = fit(model, _images(), steps=2, batch_size=4, device="cpu")
    assert torch.equal(torch.randn(3), expected)
    assert not any(part.training for part in [*model.modules(), *trained.modules()])
    before = {name: value.clone() for name, value in trained.state_dict().items()}
    fit(trained, _images(), steps=2, batch_size=4, device="cpu")
    assert any(not torch.equal(value, before[name]) for name, value in trained.state_dict().items())


def test_a_network_of_one_s_own_need_not_take_classes():
    class Own(torch.nn.Linear):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x)

    class Told(Own):
        def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return super().forward(x, c_noise)

    vectors, weights = torch.randn(8, 2), []
    for network in (Own(2, 2), Told(2, 2)):
        nn.init.eye_(network.weight)
        nn.init.zeros_(network.bias)
        fit(NetworkScoreModel(network, VP(), EpsParameterization()), vectors, steps=2, device="cpu")
        weights.append(network.weight.detach())
    assert torch.equal(*weights) and bool((weights[0] != torch.eye(2)).all())


def test_labels_beside_a_data_set_are_refused():
    digits = load_dataset("digits", root=".", split="train")
    with pytest.raises(ValueError, match="labels and values are for tensors, got a data set"):
        fit(_mlp(2), digits, labels=digits.labels, steps=1)


def test_batches_go_on_after_they_were_closed():
    """Also where batches are made ahead, as on a GPU."""
    batches = Batches(
        TensorDataset(torch.randn(9, 2), torch.zeros(9, dtype=torch.int64)), RankSlice(4), seed=0, ahead=True
    )
    first = batches.at(0)
    batches.close()
    assert torch.equal(batches.at(0).eps, first.eps)
    batches.close()
