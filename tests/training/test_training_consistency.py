"""Losses of consistency models: the fixed points that they have in closed form, their levels, and equal dropout."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from models import (
    ConsistencyModel,
    EDMParameterization,
    EpsParameterization,
    GaussianMixtureScoreModel,
    NetworkScoreModel,
    Prediction,
    ScoreModel,
    VParameterization,
)
from models.backbones import MLP, UNet
from samplers import make_sampler
from sde_lib import SDE, VE, VP, CosineVP, NoiseStreams, Tabulated, expand_like
from training.fit import fit
from training.losses import (
    ConsistencyDistillation,
    ConsistencyTraining,
    ConsistencyTuning,
    ContinuousConsistency,
    make_loss,
)
from training.losses.consistency import PairLoss, noise_ratio

S = 0.5
EDM = VE(sigma_min=0.002, sigma_max=80.0)


def gaussian(sde: SDE, mean: float = 0.0, std: float = S) -> GaussianMixtureScoreModel:
    means = torch.full((1, 1), mean, dtype=torch.float64)
    return GaussianMixtureScoreModel(sde, means=means, covs=torch.full((1, 1, 1), std**2, dtype=torch.float64))


class Linear(ConsistencyModel):
    """f = a_n y on the levels of a grid, with a_0 = 1: all maps that there are of a Gaussian with mean 0."""

    def __init__(self, sde: SDE, grid: Tensor) -> None:
        super().__init__(gaussian(sde))
        self.grid, self.a = grid, torch.ones(len(grid), dtype=torch.float64)

    def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> Tensor:
        slope = self.a[torch.searchsorted(self.grid, t.contiguous())]
        return expand_like(slope / self.sde.alpha(t), x_t) * x_t


def fixed_point(loss: PairLoss, sde: SDE) -> float:
    """a_N of the model at which the loss is least, level by level from the data on.

    The expected loss is a sum over Gauss-Hermite nodes, exact for squares; of a large c the distance is one, and its
    least point in a_n is that of the parabola through three values.
    """
    loss.huber = 1e6
    grid = loss.grid(sde)  # pyright: ignore[reportAttributeAccessIssue]
    model = Linear(sde, grid)
    z, weight = (torch.from_numpy(part) for part in np.polynomial.hermite_e.hermegauss(4))
    x0, eps = (part.reshape(-1, 1) for part in torch.meshgrid(S * z, z, indexing="ij"))
    weights = torch.outer(weight, weight).flatten()
    for n in range(1, len(grid)):
        values = []
        for a in (-1.0, 0.0, 1.0):
            model.a[n] = a
            values.append(float((weights * loss(model, x0, grid[n].expand(len(x0)), eps)).sum()))
        low, middle, high = values
        model.a[n] = 0.5 * (low - high) / (low - 2 * middle + high)
    return float(model.a[-1])


def ratios(sde: SDE, loss: PairLoss) -> list[float]:
    return noise_ratio(sde, loss.grid(sde)).tolist()  # pyright: ignore[reportAttributeAccessIssue]


def exact(ratio: list[float]) -> float:
    return math.sqrt((S**2 + ratio[0] ** 2) / (S**2 + ratio[-1] ** 2))


@pytest.mark.parametrize("sde", [EDM, VP()], ids=["ve", "vp"])
def test_consistency_training_and_eulers_distillation_have_one_fixed_point_of_first_order(sde: SDE):
    """a_N = prod (s^2 + r_n r_{n+1}) / (s^2 + r_{n+1}^2), whose error halves as levels double."""
    errors = []
    for count in (40, 80):
        losses: list[PairLoss] = [ConsistencyTraining(noise_levels=(count, count))]
        losses.append(ConsistencyDistillation(noise_levels=(count, count), teacher=gaussian(sde), solver="euler"))
        r = ratios(sde, losses[0])
        known = math.prod((S**2 + low * high) / (S**2 + high**2) for low, high in itertools.pairwise(r))
        for loss in losses:
            assert fixed_point(loss, sde) == pytest.approx(known, rel=1e-6)
        errors.append(abs(known / exact(r) - 1))
    assert 1.8 < errors[0] / errors[1] < 2.3


def test_heuns_distillation_has_a_fixed_point_of_second_order():
    errors = []
    for count in (40, 80):
        loss = ConsistencyDistillation(noise_levels=(count, count), teacher=gaussian(EDM), solver="heun")
        r, known = ratios(EDM, loss), 1.0
        for low, high in itertools.pairwise(r):
            first, second = high / (S**2 + high**2), low / (S**2 + low**2)
            step = low - high
            known *= 1 + 0.5 * step * (first + second * (1 + step * first))
        # at the end of VE's grid there is noise, so that Heun's step is taken to it too
        assert fixed_point(loss, EDM) == pytest.approx(known, rel=1e-6)
        errors.append(abs(known / exact(r) - 1))
    assert errors[0] / errors[1] > 3.6


def test_on_ten_levels_training_is_a_quarter_off():
    """The figure of the notes on few-step models: -24.7 % at N = 10, -3.5 % at 80."""
    for count, expected in ((10, -0.247), (80, -0.035)):
        r = ratios(EDM, ConsistencyTraining(noise_levels=(count, count)))
        known = math.prod((S**2 + low * high) / (S**2 + high**2) for low, high in itertools.pairwise(r))
        assert known / exact(r) - 1 == pytest.approx(expected, abs=3e-3)


@pytest.mark.parametrize("sde", [VP(), CosineVP(), Tabulated.ddpm()], ids=["vp", "cosine", "ddpm"])
@pytest.mark.parametrize("data_std", [0.5, 1.3])
def test_the_tangent_of_the_exact_map_is_0(sde: SDE, data_std: float):
    """df/da along the flow is 0 for the consistency map of a Gaussian, whatever the units; without a teacher it is
    0 in the mean, and with another map it is not."""
    mean = 0.3

    class Map(ScoreModel):
        def forward(self, x_t: Tensor, t: Tensor, *, cond: object = None) -> Prediction:
            alpha, sigma = self.sde.alpha_sigma(t)
            shrink = expand_like(S / (S**2 + (sigma / alpha).square()).sqrt(), x_t)
            x0 = mean + shrink * (x_t / expand_like(alpha, x_t) - mean)
            return Prediction.from_x0(x_t, x0, alpha=alpha, sigma=sigma)

    torch.manual_seed(0)
    loss = ContinuousConsistency(teacher=gaussian(sde, mean), double_every=1)
    t = loss.times(sde, torch.linspace(0.01, 0.99, 50, dtype=torch.float64))
    x0, eps = mean + S * torch.randn(50, 1, dtype=torch.float64), torch.randn(50, 1, dtype=torch.float64)
    answered, tangent = loss.tangent(ConsistencyModel(Map(sde), data_std=data_std), x0, t, eps, None)
    assert float(tangent.abs().max()) < 1e-6
    _, other = loss.tangent(ConsistencyModel(gaussian(sde, mean), data_std=data_std), x0, t, eps, None)
    assert float(other.abs().max()) > 0.1
    torch.testing.assert_close(answered, Map(sde)(sde.perturb(x0, t, eps), t).x0)


def test_the_tangent_is_the_derivative_along_the_flow():
    """Of a network that knows nothing, by differences; without a teacher the flow is that of the noise."""
    sde = VP()
    network = NetworkScoreModel(Wave(), sde, VParameterization())
    model, loss = ConsistencyModel(network), ContinuousConsistency(double_every=1)
    torch.manual_seed(1)
    x0, eps = torch.randn(6, 2, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    t = torch.linspace(0.2, 0.8, 6, dtype=torch.float64)
    _, tangent = loss.tangent(model, x0, t, eps, None)
    angle, h = loss.angle(model, t), 1e-5

    def at(a: Tensor) -> Tensor:
        time = sde.time_from_log_snr(-2 * (model.data_std * a.tan()).log())
        return model(sde.perturb(x0, time, eps), time)

    slope = (at(angle + h) - at(angle - h)) / (2 * h)
    torch.testing.assert_close(tangent, angle.cos()[:, None] * slope, rtol=1e-5, atol=1e-6)
    # while the tangent warms up, the part that holds dF/da counts less
    early = ContinuousConsistency(double_every=10)
    first, (_, tenth) = early.tangent(model, x0, t, eps, None), early.tangent(model, x0, t, eps, None)
    early.begin_step(9)
    torch.testing.assert_close(early.tangent(model, x0, t, eps, None)[1], tangent)
    assert torch.equal(first[1], tenth) and not torch.allclose(tenth, tangent, rtol=1e-2)


class Wave(nn.Module):
    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        return (3 * x + expand_like(0.01 * c_noise, x)).sin()


class Dropped(nn.Module):
    """A network of dropout alone, whose answer shows what was drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.drop, self.drawn = nn.Dropout(0.5), []

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        mask = self.drop(torch.ones_like(x))
        self.drawn.append(mask.detach())
        return self.weight * mask * x


@pytest.mark.parametrize("kind", ["consistency_training", "consistency_tuning", "consistency_distillation", "scm"])
def test_both_branches_drop_the_same_and_the_draws_decide_what(kind: str):
    sde, backbone = VP(), Dropped()
    model = ConsistencyModel(NetworkScoreModel(backbone, sde, EpsParameterization())).train()
    teacher = {} if kind == "consistency_training" else {"teacher": gaussian(sde).eval()}
    teacher = teacher if kind != "scm" else {"teacher": None}
    loss = make_loss(kind, sde=sde, parameterization="eps", weighting="auto", data_std=0.5, num_levels=None, **teacher)
    t, x0, eps = loss.times(sde, torch.rand(8)), torch.randn(8, 1), torch.randn(8, 1)
    values = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        values.append(loss(model, x0, t, eps))
    values[0].sum().backward()
    one, other, *_ = backbone.drawn
    assert torch.equal(one, other) and 0 < float(one.mean()) < 2
    assert torch.equal(values[0], values[1]) and not torch.equal(values[0], values[2])
    assert backbone.weight.grad is not None and bool(torch.isfinite(backbone.weight.grad))


def test_levels_double_and_are_drawn_log_normally():
    """Song & Dhariwal 2023, Section 3.4 and 3.5: the share of an interval is that of the log-normal in it."""
    loss = ConsistencyTraining(noise_levels=(3, 20), double_every=100)
    found = []
    for step in (0, 99, 100, 200, 300, 10**9):
        loss.begin_step(step)
        found.append((loss.num_intervals, len(loss.grid(EDM))))
    assert found == [(3, 4), (3, 4), (6, 7), (12, 13), (20, 21), (20, 21)]
    loss.begin_step(100)
    log_r = noise_ratio(EDM, loss.grid(EDM)).log()
    below = torch.special.ndtr((log_r + 1.1) / 2.0)
    expected = below.diff() / (below[-1] - below[0])
    u = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    drawn = loss.times(EDM, u)
    shares = torch.stack([(drawn == t).double().mean() for t in loss.grid(EDM)[1:]])
    torch.testing.assert_close(shares, expected, rtol=0, atol=1e-4)
    assert torch.equal(loss.below(EDM, loss.grid(EDM)[1:]), loss.grid(EDM)[:-1])


@pytest.mark.parametrize("sde", [VP(), Tabulated.ddpm(), EDM], ids=["vp", "ddpm", "ve"])
def test_tuning_begins_as_denoising_and_brings_the_two_points_together(sde: SDE):
    """Geng et al. 2024: r_s = r_t (1 - (1 + 8 sigmoid(-r_t)) / 2^(k + 1)), 0 where that is negative."""
    loss = ConsistencyTuning(teacher=gaussian(sde), double_every=10)
    t = loss.times(sde, torch.linspace(0.001, 0.999, 200, dtype=torch.float64))
    x0, eps, model = torch.zeros(200, 1), torch.ones(200, 1), ConsistencyModel(gaussian(sde))
    r, first = noise_ratio(sde, t), float(noise_ratio(sde, torch.zeros(1, dtype=torch.float64)))
    for step, halved in ((0, 2), (10, 4), (35, 16)):
        loss.begin_step(step)
        *_, s = loss.pair(model, x0, t, eps, None)
        wanted = (r * (1 - (1 + 8 / (1 + r.exp())) / halved)).clamp_min(first)
        noisy = s > 0
        torch.testing.assert_close(noise_ratio(sde, s)[noisy], wanted[noisy], rtol=1e-6, atol=1e-9)
        least = float(noise_ratio(sde, torch.tensor([sde.t_min], dtype=torch.float64)))
        assert bool((wanted[~noisy] <= max(least, first)).all()) and bool((s < t).all())


def test_log_normal_times_have_the_mean_and_spread_that_they_are_asked_for():
    u = (torch.arange(50_000, dtype=torch.float64) + 0.5) / 50_000
    log_r = noise_ratio(EDM, ConsistencyTuning(teacher=gaussian(EDM), log_ratio_std=1.0).times(EDM, u)).log()
    assert float(log_r.mean()) == pytest.approx(-1.1, abs=1e-3) and float(log_r.std()) == pytest.approx(1.0, abs=1e-3)


def test_the_distance_is_pseudo_huber():
    loss = ConsistencyTraining(huber=0.5)
    a, b = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[1.0, 0.0, 3.0, 1.0]])
    assert float(loss.distance(a, b)) == pytest.approx(math.sqrt(13 + 1) - 1)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConsistencyTuning(teacher=None), "begins from a trained model, got none; set distillation.teacher"),
        (lambda: ConsistencyDistillation(teacher=None), "begins from a trained model, got none"),
        (lambda: ConsistencyDistillation(teacher=gaussian(EDM), solver="rk4"), "unknown solver 'rk4'"),
        (lambda: ConsistencyTraining(noise_levels=(20, 10)), "noise_levels must be the least and the most"),
        (lambda: ConsistencyTraining(huber=-1.0), "huber must be above 0"),
        (lambda: ConsistencyTraining(double_every=0), "double_every at least 1"),
        (
            lambda: ConsistencyTraining()(gaussian(EDM), *3 * [torch.ones(2)]),  # pyright: ignore[reportArgumentType]
            "loss 'consistency_training' needs a ConsistencyModel whose t_end is 0, got a GaussianMixtureScoreModel",
        ),
        (
            lambda: ContinuousConsistency()(ConsistencyModel(gaussian(EDM), t_end=0.1), *3 * [torch.ones(2)]),
            "loss 'scm' needs a ConsistencyModel whose t_end is 0",
        ),
    ],
)
def test_what_cannot_be_is_refused(build, message: str):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_tangent_of_a_u_net_is_that_of_differences_however_its_memory_lies():
    """Attention and channels-last norms have no derivative in forward mode by themselves."""
    torch.manual_seed(0)
    network = UNet(
        image_size=8, in_channels=1, channels=16, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(4,),
        norm_groups=8,
    )  # fmt: skip
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.2)
    network = network.double().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    sde = VP()
    model, loss = (
        ConsistencyModel(NetworkScoreModel(network, sde, VParameterization())),
        ContinuousConsistency(double_every=1),
    )
    x0, eps = (torch.randn(3, 1, 8, 8, dtype=torch.float64) for _ in range(2))
    t, h = torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64), 1e-6
    _, tangent = loss.tangent(model, x0, t, eps, None)
    angle = loss.angle(model, t)

    @torch.no_grad()
    def at(a: Tensor) -> Tensor:
        time = sde.time_from_log_snr(-2 * (model.data_std * a.tan()).log())
        return model(sde.perturb(x0, time, eps), time)

    slope = (at(angle + h) - at(angle - h)) / (2 * h)
    torch.testing.assert_close(tangent, expand_like(angle.cos(), x0) * slope, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_two_calls_give_eight_modes_their_weights():
    """8 Gaussians in the plane, distilled from their exact score: each weight within 3 standard errors."""
    turn = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means, weights = torch.stack([turn.cos(), turn.sin()], 1), torch.tensor([1.0, 2.0] * 4, dtype=torch.float64) / 12
    sde = VE(sigma_min=0.02, sigma_max=20.0)
    covs = 0.01 * torch.eye(2, dtype=torch.float64).expand(8, 2, 2)
    mixture = GaussianMixtureScoreModel(sde, means=means, covs=covs, weights=weights)
    torch.manual_seed(0)
    network = NetworkScoreModel(MLP(2, 128, 3, embedding="fourier"), sde, EDMParameterization(data_std=0.7))
    trained = fit(
        ConsistencyModel(network, data_std=0.7),
        mixture.sample_data(20_000, torch.Generator().manual_seed(0)).float(),
        steps=1_500,
        loss=ConsistencyDistillation(teacher=mixture, noise_levels=(20, 160), double_every=300),
        step_sampling="low_discrepancy", batch_size=256, learning_rate=2e-3, ema_decay=0.999, device="cpu",
        decay_steps=1_500, grad_clip=0.0,
    )  # fmt: skip
    sampler = make_sampler("consistency", num_steps=2, grid=torch.tensor([1.0, 0.55, 0.0], dtype=torch.float64))
    noise = NoiseStreams(5, range(3_000))
    x_T = sampler.prior_sample(sde, (2,), noise)
    x = sampler.sample(trained, x_T, noise=noise).x0.double()  # pyright: ignore[reportArgumentType]
    nearest = torch.cdist(x, means).min(1)
    shares = torch.bincount(nearest.indices, minlength=8) / 3_000
    errors = (shares - weights) / (weights * (1 - weights) / 3_000).sqrt()
    assert float(errors.abs().max()) < 3, errors
    assert float((nearest.values < 0.3).double().mean()) > 0.85
