"""Arguments of one step: weights of times, losses to remember, conditions, and all that is learned."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from data import ImageDataset
from experiment.config import load_config
from models import EpsParameterization, NetworkScoreModel, Prediction, ScoreModel
from sde_lib import SDE, VP, LearnedVP, Tabulated
from training.build import build_state
from training.losses import DDPMLoss, make_loss
from training.losses.step_sampling import TimeDraw, TimeSampler, spread
from training.state import TrainingState
from training.trainer import Trainer, TrainingOptions

ROOT = Path(__file__).resolve().parents[2]
LEVELS = 17


def _ready(config_name: str, seed: int = 0) -> tuple[TrainingState, Trainer]:
    extra = ("model.channels=16", "training.batch_size=4", f"seed={seed}")
    config = load_config(str(ROOT / f"configs/vp/{config_name}.py"), [f"--config.{setting}" for setting in extra])
    images = torch.randint(LEVELS, (8, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    dataset = ImageDataset(images, torch.arange(8), LEVELS, 10, "digits", "train")
    state = build_state(config, dataset.kind, torch.device("cpu"))
    trainer = Trainer(state, dataset, TrainingOptions(1, batch_size=4, learning_rate=1e-3, grad_clip=0.0))
    return state, trainer


class _RecordedTimes(TimeSampler):
    """Gives its own weights, and keeps what it is told."""

    weights = torch.tensor([0.0, 0.5, 3.0, 0.5], dtype=torch.float64)

    def draw(self, u: Tensor) -> TimeDraw:
        return TimeDraw(((u * 1000).floor() + 1) / 1000, self.weights)

    def observe(self, t: Tensor, losses: Tensor) -> None:
        self.told = losses.detach().clone()


class _Recorded(DDPMLoss):
    """Keeps what it says."""

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Tensor | None = None) -> Tensor:
        self.said = super().__call__(model, x0, t, eps, cond=cond)
        return self.said


def test_losses_count_by_their_weights_and_are_remembered_without_them():
    state, trainer = _ready("digits")
    loss, times = _Recorded(), _RecordedTimes()
    state.loss, state.times = loss, times
    mean = trainer.step().loss
    said = loss.said.detach()
    assert mean == pytest.approx(float((times.weights * said).sum()) / 4, rel=1e-6)
    assert torch.equal(times.told, said) and mean != pytest.approx(float(said.mean()), rel=1e-3)


def test_a_dequantizer_is_trained_averaged_saved_and_restored(tmp_path: Path):
    state, trainer = _ready("digits_dequantized")
    assert state.model.dequantizer is not None and state.ema.model.dequantizer is not None
    new = {name: value.clone() for name, value in state.model.dequantizer.state_dict().items()}
    trainer.step()
    trainer.step()
    trained, averaged = state.model.dequantizer.state_dict(), state.ema.model.dequantizer.state_dict()
    assert all(not torch.equal(trained[name], new[name]) for name in new)
    assert all(not torch.equal(trained[name], averaged[name]) for name in new)
    state.save(tmp_path, keep=1)
    other, _ = _ready("digits_dequantized", seed=1)
    assert other.restore(tmp_path)
    for one, two in ((state.model, other.model), (state.ema.model, other.ema.model)):
        ours, theirs = one.state_dict(), two.state_dict()
        assert ours.keys() == theirs.keys() and any(name.startswith("dequantizer.") for name in ours)
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


class _Conditioned(NetworkScoreModel):
    """Keeps the condition that it was called with."""

    def __init__(self, sde: SDE) -> None:
        super().__init__(torch.nn.Identity(), sde, EpsParameterization(), learned_variance=True)
        self.conds: list[Tensor | None] = []

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Prediction:
        self.conds.append(cond)
        alpha, sigma = self.sde.alpha_sigma(t)
        return Prediction.from_eps(x_t, 0.5 * x_t, alpha=alpha, sigma=sigma, variance_fraction=torch.sigmoid(x_t))


@pytest.mark.parametrize(
    ("name", "sde", "weighting"),
    [
        ("ddpm", Tabulated.ddpm(), "auto"),
        ("vlb", Tabulated.ddpm(), "auto"),
        ("hybrid", Tabulated.ddpm(), "auto"),
        ("dsm", VP(), "auto"),
        ("dsm", VP(), "likelihood"),
        ("vlb_continuous", VP(), "auto"),
        ("vlb_continuous", LearnedVP(), "auto"),
        ("dequantized", VP(), "auto"),
    ],
)
def test_every_loss_hands_the_condition_to_the_model(name: str, sde: SDE, weighting: str):
    model = _Conditioned(sde)
    loss = make_loss(name, sde=sde, parameterization="eps", weighting=weighting, num_levels=LEVELS)
    cond, x0 = torch.tensor([3, 1]), torch.zeros(2, 1, 4)
    loss(model, x0, loss.times(sde, torch.tensor([0.2, 0.7])), torch.ones_like(x0), cond=cond)
    assert len(model.conds) == 1 and model.conds[0] is cond


@pytest.mark.parametrize(("name", "sde"), [("vlb_continuous", LearnedVP()), ("dsm", VP()), ("ddpm", Tabulated.ddpm())])
def test_low_discrepancy_times_are_those_of_spread_draws(name: str, sde: SDE):
    options = {"sde": sde, "parameterization": "eps", "num_levels": LEVELS}
    u = torch.rand(9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    loss = make_loss(name, **options)
    drawn, plain = loss.time_sampler(sde, "low_discrepancy").draw(u), loss.time_sampler(sde)
    assert torch.equal(drawn.t, plain.draw(spread(u)).t) and not torch.equal(drawn.t, plain.draw(u).t)
    assert bool((drawn.weight == 1).all())
