"""Samples predicted on their way, against what Gaussians have in closed form at every t."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluation.quality import frechet_distance
from models import GaussianMixtureScoreModel
from samplers import GridSampler, make_sampler
from sde_lib import SDE, VE, VP, NoiseStreams, Tabulated
from tasks.latents import (
    common_variance,
    draw_progressively,
    draw_shared,
    gaussian_correlation,
    noised,
    prediction_times,
    predictions_along,
    progress,
    shared_correlation,
    variances_of,
)

SDES = {"vp": VP(), "ve": VE(sigma_max=20.0), "ddpm": Tabulated.ddpm()}
VARIANCES = torch.tensor([0.6, 0.2, 0.05], dtype=torch.float64)
MEAN = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
COUNT = 4000


def _model(sde: SDE) -> GaussianMixtureScoreModel:
    return GaussianMixtureScoreModel(sde, means=MEAN[None], covs=VARIANCES.diag()[None])


def _sampler(name: str = "ddim", num_steps: int = 60, **options) -> GridSampler:
    sampler = make_sampler(name, num_steps=num_steps, **options)
    assert isinstance(sampler, GridSampler)
    return sampler


def _correlations(sde: SDE, t: float) -> Tensor:
    return torch.tensor([shared_correlation(sde, t, var=float(var)) for var in VARIANCES], dtype=torch.float64)


def _frechet_by_chance(num_a: int, num_b: int) -> float:
    """The mean distance of two sets of one Gaussian: of their means, and of covariances to second order."""
    sums = VARIANCES[:, None] + VARIANCES[None]
    of_covs = (VARIANCES[:, None] * VARIANCES[None] * (1 + torch.eye(3)) / sums).sum() / 2
    return float((1 / num_a + 1 / num_b) * (VARIANCES.sum() + of_covs))


def _data(count: int = COUNT, seed: int = 1) -> Tensor:
    noise = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return MEAN + noise * VARIANCES.sqrt()


class _Impulses:
    """Noise whose draw i is 1 in number i and 0 elsewhere."""

    def __init__(self, *_: object) -> None:
        self.draws = 0

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        return self.normal_like(torch.zeros(1, *shape, dtype=torch.float64))

    def normal_like(self, x: Tensor) -> Tensor:
        drawn = torch.zeros_like(x)
        drawn[:, self.draws] = 1
        self.draws += 1
        return drawn


class _EachNumber(GaussianMixtureScoreModel):
    """A Gaussian of one number, for every number of a sample."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.reshape(-1, 1), t.repeat_interleave(x_t[0].numel()))
        return type(answer)(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=self.sde.sigma(t))


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_samples_are_foreseen_as_well_as_their_states_allow(sde: SDE, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "NoiseStreams", _Impulses)
    var, found = 0.5, []
    model = _EachNumber(sde, means=torch.zeros(1, 1), covs=torch.full((1, 1, 1), var))
    for num_steps in (100, 200):
        # each number is moved by one draw alone, and all is linear: the sums of squares are the variances
        sampler = _sampler("ancestral", num_steps, grid="log_snr")
        times = prediction_times(sampler, sde, (0.9, 0.6, 0.4, 0.3))
        drawn = draw_progressively(model, sampler, (num_steps + 2,), times, numbers=[0])
        errors = (drawn.x0_hat - drawn.x0).square().sum((1, 2))
        found.append(
            [
                float(one) / (var * (1 - shared_correlation(sde, t, var=var)))
                for t, one in zip(times, errors, strict=True)
            ]
        )
    # the sampler is of first order: without the term in 1 / num_steps
    rough, fine = np.array(found)
    np.testing.assert_allclose(2 * fine - rough, 1, atol=0.02)
    assert (abs(fine - 1) < 0.6 * abs(rough - 1) + 1e-3).all()


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_flow_is_foreseen_better_since_x_t_decides_it(sde: SDE):
    var, mean = 0.5, 0.2
    model = _EachNumber(sde, means=torch.full((1, 1), mean), covs=torch.full((1, 1, 1), var))
    sampler = _sampler("probability_flow", 40, solver="rk4", grid="log_snr")
    times = prediction_times(sampler, sde, (0.7, 0.4))
    drawn = draw_progressively(model, sampler, (50,), times, numbers=[0])
    for t, x0_hat in zip(times, drawn.x0_hat, strict=True):
        foreseen = math.sqrt(shared_correlation(sde, t, var=var)) * (drawn.x0 - mean)
        torch.testing.assert_close(x0_hat - mean, foreseen, rtol=0, atol=1e-3)


def test_samplers_with_other_noise_than_the_reverse_sde_share_more_or_less_than_x_t_tells():
    sde, var, t = SDES["vp"], 0.3, 0.25
    model = _EachNumber(sde, means=torch.zeros(1, 1), covs=torch.full((1, 1, 1), var))
    x0 = math.sqrt(var) * torch.randn(1, 4000, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    x_t, shares = noised(sde, x0, t, numbers=[0]), {}
    for name, options in {
        "ddim": {"eta": 0.5},
        "euler_maruyama": {},
        "heun": {"churn": 10.0},
        "predictor_corrector": {},
        "annealed_langevin": {"steps_per_level": 5},
    }.items():
        sampler = _sampler(name, 50, grid="log_snr", **options)
        drawn = draw_shared(model, sampler, x_t, t, num_samples=2, numbers=[0])
        parts = common_variance(drawn.x0, torch.zeros(4000))
        shares[name] = float(parts["common"] / parts["total"])
    exact = shared_correlation(sde, t, var=var)
    # an estimate of 4000 numbers is off by 0.016, and the reverse SDE's of 50 steps by 0.03 besides
    assert abs(shares["euler_maruyama"] - exact) < 0.08
    assert shares["ddim"] > exact + 0.3 and shares["heun"] < exact - 0.05
    # Langevin steps forget x_t
    assert abs(shares["predictor_corrector"]) < 0.05 and abs(shares["annealed_langevin"]) < 0.05


def test_the_frechet_distance_falls_to_that_of_chance():
    sde, sampler = SDES["vp"], _sampler("probability_flow", 30, solver="rk4", grid="log_snr")
    times = prediction_times(sampler, sde, num_times=5)
    chance, groups, distances = _frechet_by_chance(150, COUNT), 8, []
    for group in range(groups):
        numbers = range(150 * group, 150 * (group + 1))
        drawn = draw_progressively(_model(sde), sampler, (3,), times, numbers=numbers)
        data = _data(seed=2 + group)
        distances.append([frechet_distance(one, data) for one in (*drawn.x0_hat, drawn.x0)])
    mean, stderr = np.mean(distances, 0), np.std(distances, 0, ddof=1) / math.sqrt(groups)
    for k, t in enumerate(times):
        # the law of x0_hat is a Gaussian of variance r c
        exact = float((VARIANCES * (1 - _correlations(sde, t).sqrt()).square()).sum())
        assert abs(mean[k] - exact - chance) < 4 * stderr[k] + chance
    # at the smallest t nothing but chance is left, and so of the samples
    for k in (-2, -1):
        assert abs(mean[k] - chance) < 4 * stderr[k]
    assert mean[0] > 50 * chance


def test_a_sample_is_that_of_its_number_and_its_prediction_that_of_its_state():
    sde = SDES["vp"]
    sampler = _sampler("ancestral", 8, record_trajectory=True)
    times = prediction_times(sampler, sde, num_times=4)
    together = draw_progressively(_model(sde), sampler, (3,), times, numbers=range(4), seed=3)
    alone = draw_progressively(_model(sde), sampler, (3,), times, numbers=[2], seed=3)
    torch.testing.assert_close(alone.x0[0], together.x0[2])
    torch.testing.assert_close(alone.x0_hat[:, 0], together.x0_hat[:, 2])

    noise = NoiseStreams(3, range(4))
    trajectory = sampler.sample(_model(sde), sampler.prior_sample(sde, (3,), noise), noise=noise).trajectory
    assert trajectory is not None and together.nfe == 8
    places = [sampler.times(sde).tolist().index(t) for t in times]
    assert places == [0, 2, 5, 7]
    torch.testing.assert_close(together.x0_hat, predictions_along(_model(sde), trajectory[places], times))


def test_times_are_those_of_the_grid():
    sampler = _sampler(num_steps=10)
    assert prediction_times(sampler, SDES["vp"], [0.32, 0.98, 0.28]) == pytest.approx((1.0, 0.3))
    assert len(prediction_times(sampler, SDES["vp"], num_times=99)) == 10  # t = 0 has no noise
    assert len(prediction_times(sampler, SDES["ve"], num_times=99)) == 11
    for t in (0.05, 0.0, 1.2, math.nan):
        with pytest.raises(
            ValueError, match=r"DDIMSampler has states with noise at t in \[0\.1, 1\], got .*; change t"
        ):
            prediction_times(sampler, SDES["vp"], [0.5, t])


def test_the_best_linear_guess_errs_by_the_eigenvalues():
    x0 = _data(50)
    torch.testing.assert_close(variances_of(x0), torch.linalg.eigvalsh(x0.T.cov()))
    torch.testing.assert_close(variances_of(x0.T)[-2:], torch.linalg.eigvalsh(x0.cov())[-2:])
    sde, t = SDES["ddpm"], 0.2
    # the guess by least squares of many images, against the eigenvalues
    images = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) @ torch.tensor(
        [[1.0, 0.5], [0.0, 0.3]], dtype=torch.float64
    )
    eps = torch.randn(images.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x_t = sde.perturb(images, torch.full((len(images),), t), eps)
    centred = images - images.mean(0)
    from_x_t = x_t - x_t.mean(0)
    error = (centred - from_x_t @ torch.linalg.lstsq(from_x_t, centred).solution).square().mean(0).sum()
    variances = variances_of(images)
    expected = variances.sum() * (1 - gaussian_correlation(sde, t, variances=variances))
    assert float(error) == pytest.approx(float(expected), rel=0.02)
    assert gaussian_correlation(sde, t, variances=torch.tensor([0.4])) == pytest.approx(
        shared_correlation(sde, t, var=0.4)
    )


def test_variance_in_common_is_that_of_pairs():
    samples = torch.randn(5, 3, 2, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    mean = torch.full((2, 2), 0.3, dtype=torch.float64)
    found = common_variance(samples, mean)
    pairs = [((samples[:, j] - mean) * (samples[:, k] - mean)).mean((1, 2)) for j in range(3) for k in range(j)]
    torch.testing.assert_close(found["common"], torch.stack(pairs).mean(0))
    torch.testing.assert_close(found["total"], (samples - mean).square().mean((1, 2, 3)))
