import math

import pytest
import torch
from small_networks import score_model
from torch import Tensor, nn

from models import (
    DiscreteScoreModel,
    GaussianMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    make_parameterization,
)
from sde_lib import SDE, VE, VP, SubVP, Tabulated
from training.ema import ExponentialMovingAverage
from training.losses import make_loss, weighted_error
from training.optimization import ema_decay_at, learning_rate_factor

SDES = {
    "vp": VP(),
    "subvp": SubVP(),
    "ve": VE(sigma_max=20.0),
    "ddpm": Tabulated.ddpm(),
    "ncsn": Tabulated.ncsn(num_steps=200),
}


class _Gaussian(GaussianMixtureScoreModel):
    """N(0, 0.25) data, for which the least possible loss is known."""

    def __init__(self, sde: SDE) -> None:
        super().__init__(sde, means=torch.zeros(1, 1), covs=0.25 * torch.ones(1, 1, 1))


@pytest.mark.parametrize("name", sorted(SDES))
def test_times_cover_their_range_uniformly(name: str):
    sde = SDES[name]
    loss = make_loss("auto", sde=sde, parameterization="eps", weighting="eps")
    u = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    t = loss.times(sde, u)
    assert t.dtype == torch.float64
    if sde.table_size is None:
        torch.testing.assert_close(t, sde.t_min + u * (sde.t_max - sde.t_min))
        return
    rows, counts = (t * sde.table_size).round().unique(return_counts=True)
    torch.testing.assert_close(t * sde.table_size, (t * sde.table_size).round(), rtol=0, atol=1e-9)
    assert rows.tolist() == list(range(1, sde.table_size + 1))
    assert counts.min() == counts.max() == 100_000 / sde.table_size


@pytest.mark.parametrize("name", sorted(SDES))
def test_loss_of_the_exact_model_is_the_least_possible_one(name: str):
    sde = SDES[name]
    model = _Gaussian(sde)
    loss = make_loss("auto", sde=sde, parameterization="eps", weighting="eps")
    count = 200_000
    x0, eps = 0.5 * torch.randn(count, 1, dtype=torch.float64), torch.randn(count, 1, dtype=torch.float64)
    t = loss.times(sde, torch.rand(count, dtype=torch.float64))
    values = loss(model, x0, t, eps)
    # Var[eps | x_t] of a Gaussian: 1 - sigma^2 / (sigma^2 + alpha^2 / 4)
    truth = 1 - sde.sigma(t) ** 2 / (sde.sigma(t) ** 2 + 0.25 * sde.alpha(t) ** 2)
    difference = values - truth
    assert abs(float(difference.mean())) < 4 * float(difference.std()) / math.sqrt(count)
    shifted = Prediction.from_eps(
        sde.perturb(x0, t, eps),
        model(sde.perturb(x0, t, eps), t).eps + 0.1,
        alpha=sde.alpha(t),
        sigma=sde.sigma(t),
    )
    worse = weighted_error("eps", shifted, x0, eps, sde=sde, t=t, data_std=0.5)
    extra = worse - values
    assert abs(float(extra.mean()) - 0.01) < 4 * float(extra.std()) / math.sqrt(count)


@pytest.mark.parametrize("sde", [VP(), VE(), SubVP()], ids=["vp", "ve", "subvp"])
def test_weightings_are_those_of_the_papers(sde: SDE):
    t = torch.tensor([0.2, 0.7], dtype=torch.float64)
    alpha, sigma = sde.alpha(t), sde.sigma(t)
    x0, eps, wrong = (torch.randn(2, 3, dtype=torch.float64) for _ in range(3))
    prediction = Prediction.from_eps(sde.perturb(x0, t, eps), eps + wrong, alpha=alpha, sigma=sigma)
    square = wrong.square().mean(1)
    s, d = sigma / alpha, 0.3
    truth = {
        "eps": square,
        "x0": square * s**2,
        # v error: alpha (eps error) - sigma (x0 error), and the x0 error is -s times the eps error
        "v": square * (alpha + sigma * s) ** 2,
        "velocity": square * (0.5 * sde.diffusion_sq(t) / sigma) ** 2,  # W / alpha = g^2 / (2 sigma)
        "edm": square * s**2 * (s**2 + d**2) / (s * d) ** 2,
    }
    for weighting, expected in truth.items():
        got = weighted_error(weighting, prediction, x0, eps, sde=sde, t=t, data_std=d)
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-12)


def test_edm_weighting_makes_the_loss_of_the_raw_output_one_everywhere():
    """Karras et al. 2022, Section 5: with their weighting, the effective weight on the network's output is 1."""
    sde, d = VE(sigma_max=20.0), 0.5

    class Backbone(nn.Module):
        def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
            return torch.zeros_like(x)

    model = NetworkScoreModel(Backbone(), sde, make_parameterization("edm", data_std=d))
    loss = make_loss("auto", sde=sde, parameterization="edm", weighting="auto", data_std=d)
    assert loss.weighting == "edm"
    count = 100_000
    for time in (0.05, 0.5, 0.95):
        t = torch.full((count,), time, dtype=torch.float64)
        x0, eps = d * torch.randn(count, 1, dtype=torch.float64), torch.randn(count, 1, dtype=torch.float64)
        values = loss(model, x0, t, eps)
        # a network of zeros leaves the target, whose variance their preconditioning makes 1
        assert abs(float(values.mean()) - 1) < 4 * float(values.std()) / math.sqrt(count)


def test_auto_follows_the_sde_and_the_parameterization():
    assert type(make_loss("auto", sde=VP(), parameterization="eps", weighting="auto")).__name__ == (
        "DenoisingScoreMatching"
    )
    loss = make_loss("auto", sde=Tabulated.ddpm(), parameterization="v", weighting="auto")
    assert type(loss).__name__ == "DDPMLoss" and loss.weighting == "eps"


def test_no_sample_of_the_loss_depends_on_its_batch_mates():
    sde = VP()
    points = torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    model = DiscreteScoreModel(sde, points=points, probs=[0.2] * 5)
    loss = make_loss("dsm", sde=sde, parameterization="eps", weighting="eps")
    x0, eps = model.sample_data(6), torch.randn(6, 1, dtype=torch.float64)
    t = loss.times(sde, torch.rand(6, dtype=torch.float64))
    alone = torch.cat([loss(model, x0[k : k + 1], t[k : k + 1], eps[k : k + 1]) for k in range(6)])
    torch.testing.assert_close(loss(model, x0, t, eps), alone, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "dpm",
            {},
            "unknown loss 'dpm'; did you mean 'ddpm'? choices: autoencoder, consistency_",
        ),
        ("ddpm", {}, "loss 'ddpm' needs an SDE with a table"),
        (
            "dsm",
            {"weighting": "epz"},
            "unknown weighting 'epz'; did you mean 'eps'? choices: auto, eps, x0, v, velocity, edm, likelihood",
        ),
    ],
)
def test_refusals(name: str, options: dict[str, str], message: str):
    with pytest.raises(ValueError, match=r"unknown|needs") as caught:
        make_loss(name, sde=VP(), parameterization="eps", **options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_learning_rate_rises_linearly_and_stays():
    assert [learning_rate_factor(step, 4) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert learning_rate_factor(0, 0) == 1.0


def test_learning_rate_falls_along_half_a_cosine():
    got = [learning_rate_factor(step, 2, decay_steps=8) for step in (0, 1, 2, 4, 6, 8, 100)]
    truth = [0.5, 0.5 * (1 + math.cos(math.pi / 8)), 0.5 + 0.125**0.5, 0.5, 0.5 - 0.125**0.5, 0.0, 0.0]
    assert got == pytest.approx(truth, abs=1e-15)


def test_ema_decay_warms_up_to_its_value():
    assert ema_decay_at(0, 0.999) == 0.1
    assert ema_decay_at(90, 0.999) == 0.91
    assert ema_decay_at(10**6, 0.999) == 0.999


def test_each_update_of_the_average_has_the_decay_of_its_number():
    """0.1, 2/11, 3/12 and so on, of a weight that is 0 in the average and 1 in the model, and then 2, 3, ..."""
    model = score_model(torch.nn.Conv2d(1, 1, 1))
    weights, expected = list(model.parameters()), 0.0
    for weight in weights:
        torch.nn.init.zeros_(weight)
    average = ExponentialMovingAverage(model, 0.22)
    for number, decay in enumerate((1 / 10, 2 / 11, 0.22, 0.22)):
        for weight in weights:
            torch.nn.init.constant_(weight, number + 1.0)
        average.update(model)
        expected = decay * expected + (1 - decay) * (number + 1)
        for weight in average.model.parameters():
            torch.testing.assert_close(weight, torch.full_like(weight, expected), rtol=1e-6, atol=0)
