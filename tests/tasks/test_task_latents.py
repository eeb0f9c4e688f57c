"""Ways between latents and samples that share one, against what Gaussians have in closed form."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial import geometric_slerp
from torch import Tensor

from models import GaussianMixtureScoreModel
from samplers import GridSampler, ProbabilityFlowSampler, make_sampler
from sde_lib import VE, VP, SubVP, Tabulated
from tasks.latents import (
    draw_shared,
    interpolate,
    interpolate_images,
    noised,
    predictions_along,
    progress,
    q_latents,
    shared_correlation,
)

SDES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_max=20.0), "ddpm": Tabulated.ddpm()}
_ROOT = torch.randn(3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
COV = 0.2 * _ROOT @ _ROOT.T + 0.05 * torch.eye(3, dtype=torch.float64)
WEIGHTS = (0.0, 0.2, 0.5, 0.9, 1.0)
EYE = torch.eye(3, dtype=torch.float64)


def _gaussian(mean: Tensor | float = 0.0, cov: Tensor = COV, sde=SDES["vp"]) -> GaussianMixtureScoreModel:
    dim = len(cov)
    return GaussianMixtureScoreModel(sde, means=torch.as_tensor(mean).double().expand(1, dim), covs=cov[None])


def _flow() -> ProbabilityFlowSampler:
    return ProbabilityFlowSampler(solver="rk4", num_steps=40, grid="log_snr")


def _law(way: str, t: float) -> list[Tensor]:
    """The covariance of what lies between two independent draws of N(0, C), from the images of unit vectors."""
    zero = torch.zeros_like(EYE)
    ends = torch.stack([torch.cat([EYE, zero]), torch.cat([zero, EYE])])
    result = interpolate_images(_gaussian(), _flow(), ends, t, WEIGHTS, way=way, encoder=_flow())
    maps = [(x0[:3].T, x0[3:].T) for x0 in result.x0]
    return [of_a @ COV @ of_a.T + of_b @ COV @ of_b.T for of_a, of_b in maps]


@pytest.mark.parametrize("t", [1.0, 0.4])
def test_circle_keeps_the_law_of_the_data_and_lerp_halves_its_variance(t: float):
    for w, circle, lerp in zip(WEIGHTS, _law("circle", t), _law("lerp", t), strict=True):
        torch.testing.assert_close(circle, COV, rtol=0, atol=2e-5)
        torch.testing.assert_close(lerp, ((1 - w) ** 2 + w**2) * COV, rtol=0, atol=2e-5)


def test_circle_moves_a_mean_by_its_weights():
    mean, w, t = torch.tensor([0.5, -0.3, 0.2], dtype=torch.float64), 0.5, 1.0
    ends = mean.expand(2, 1, 3)  # pairs are linear, so that the mean goes where the mean is taken to
    (x0,) = interpolate_images(_gaussian(mean), _flow(), ends, t, [w], way="circle", encoder=_flow()).x0
    alpha, sigma = (float(one) for one in SDES["vp"].alpha_sigma(torch.tensor(t)))
    grown = math.sqrt(2) - 1
    values, vectors = torch.linalg.eigh(COV)
    upwards = vectors @ torch.diag((values / (alpha**2 * values + sigma**2)).sqrt()) @ vectors.T
    torch.testing.assert_close(x0[0], mean + grown * alpha * upwards @ mean, rtol=0, atol=2e-5)
    # which at t = 1 of VP is little
    assert float((x0[0] - mean).abs().max()) < 2e-3


def test_slerp_is_scipys_on_the_sphere_and_circle_at_right_angles():
    a, b = (torch.randn(4, 2, 5, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    a, b = (one / one.flatten(1).norm(dim=1).view(-1, 1, 1) for one in (a, b))
    found = interpolate(a, b, WEIGHTS, way="slerp")
    for k in range(4):
        expected = geometric_slerp(a[k].flatten().numpy(), b[k].flatten().numpy(), np.array(WEIGHTS))
        np.testing.assert_allclose(found[:, k].flatten(1), expected, atol=1e-14)
    across = torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 3.0]])
    torch.testing.assert_close(interpolate(*across, WEIGHTS, way="slerp"), interpolate(*across, WEIGHTS, way="circle"))


@pytest.mark.parametrize("way", ["circle", "lerp", "slerp"])
def test_ways_end_at_the_ends_and_take_each_pair_alone(way: str):
    a, b = (torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(k)) for k in (2, 3))
    found = interpolate(a, b, WEIGHTS, way=way)
    assert torch.equal(found[0], a) and torch.equal(found[-1], b) and found.dtype == a.dtype
    torch.testing.assert_close(interpolate(a[1:2], b[1:2], WEIGHTS, way=way)[:, 0], found[:, 1], rtol=0, atol=1e-6)
    # two that are alike: slerp and lerp stay, circle grows
    (middle,) = interpolate(a, a, [0.5], way=way)
    torch.testing.assert_close(middle, a * (math.sqrt(2) if way == "circle" else 1))


def test_half_the_variance_is_lost_by_lerp_between_draws_and_little_by_slerp():
    a, b = (torch.randn(200, 1000, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (4, 5))
    for way, expected in {"lerp": 0.5, "circle": 1.0, "slerp": 1.0}.items():
        (middle,) = interpolate(a, b, [0.5], way=way)
        assert float(middle.square().mean()) == pytest.approx(expected, abs=5 * math.sqrt(2 / 200_000))


@pytest.mark.parametrize("way", ["circle", "lerp", "slerp"])
def test_latents_of_q_have_the_noise_of_q_at_every_weight(way: str):
    sde, t = SDES["ddpm"], 0.5
    x0 = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    x_t = q_latents(sde, x0, t, WEIGHTS, way=way, pairs=[4, 0, 7], seed=2)
    alpha, sigma = sde.alpha_sigma(torch.tensor(t))
    eps = (x_t - alpha * interpolate(x0[0], x0[1], WEIGHTS, way=way)) / sigma
    for one in eps[1:]:
        torch.testing.assert_close(one, eps[0])
    # and so at the ends it is a draw of q; pair 7 has its noise whatever else there is
    alone = q_latents(sde, x0[:, 2:], t, WEIGHTS, way=way, pairs=[7], seed=2)
    torch.testing.assert_close(alone[:, 0], x_t[:, 2])
    other = q_latents(sde, x0, t, WEIGHTS, way=way, pairs=[4, 0, 7], seed=3)
    assert bool((other != x_t).all())


@pytest.mark.parametrize("sampler", ["ancestral", "ddim", "probability_flow"])
@pytest.mark.parametrize("encoded", [True, False])
def test_a_pair_is_the_same_in_any_batch(sampler: str, encoded: bool):
    ends = 0.3 * torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    made = make_sampler(sampler, num_steps=6)
    assert isinstance(made, GridSampler)
    options = {"way": "circle", "encoder": _flow() if encoded else None, "seed": 5}
    together = interpolate_images(_gaussian(), made, ends, 0.7, WEIGHTS, **options)
    alone = interpolate_images(_gaussian(), made, ends[:, 1:2], 0.7, WEIGHTS[1:3], pairs=[1], **options)
    torch.testing.assert_close(alone.x0[:, 0], together.x0[1:3, 1], rtol=0, atol=1e-12)
    assert together.nfe > (20 if encoded else 0)


def test_flow_latents_bring_the_ends_back():
    ends = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    result = interpolate_images(_gaussian(), _flow(), ends, 1.0, WEIGHTS, way="slerp", encoder=_flow())
    torch.testing.assert_close(result.x0[[0, -1]], ends, rtol=0, atol=1e-4)


class _Impulses:
    """Noise whose draw i is 1 in number i and 0 elsewhere."""

    def __init__(self, *_: object) -> None:
        self.draws = 0

    def normal_like(self, x: Tensor) -> Tensor:
        drawn = torch.zeros_like(x)
        drawn[:, self.draws] = 1
        self.draws += 1
        return drawn


@pytest.mark.parametrize("t", [0.3, 0.6, 0.9])
def test_samples_that_share_x_t_have_the_known_correlation(t: float, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress, "NoiseStreams", _Impulses)
    var, found = 0.5, []
    for num_steps in (100, 200):
        # each number alone: the first is moved by x_t, the others by one draw each
        dim = num_steps + 1
        model = _Scalar(SDES["vp"], means=EYE[:1, 1:2], covs=var * EYE[None, :1, :1])
        sampler = make_sampler("ancestral", num_steps=num_steps, grid="log_snr")
        assert isinstance(sampler, GridSampler)
        x_t = torch.zeros(1, dim, dtype=torch.float64)
        x_t[0, -1] = 1
        x0 = draw_shared(model, sampler, x_t, t, num_samples=1, numbers=[0]).x0[0, 0]
        alpha, sigma = (float(one) for one in model.sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
        shared = float(x0[-1]) ** 2 * (alpha**2 * var + sigma**2)
        own = float(x0[:-1].square().sum())
        found.append((shared / (shared + own), own))
    expected = shared_correlation(SDES["vp"], t, var=var)
    (rough, rough_own), (fine, fine_own) = found
    # the sampler is of first order: without the term in 1 / num_steps
    assert 2 * fine - rough == pytest.approx(expected, abs=0.003) and abs(fine - expected) < 0.6 * abs(rough - expected)
    # and what is not shared is the variance that x_t leaves open
    assert 2 * fine_own - rough_own == pytest.approx(var * (1 - expected), rel=0.02)


class _Scalar(GaussianMixtureScoreModel):
    """A Gaussian of one number, for every number of a sample."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.reshape(-1, 1), t.repeat_interleave(x_t[0].numel()))
        return type(answer)(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=self.sde.sigma(t))


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_the_prediction_errs_by_what_x_t_leaves_open(sde):
    mean, var = 0.3, 0.4
    model = _Scalar(sde, means=mean * EYE[:1, :1], covs=var * EYE[None, :1, :1])
    for t in (0.05, 0.3, 0.7, 1.0):
        alpha, sigma = (float(one) for one in sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
        # linear in x0 and eps, so that their standard deviations say it all
        x0 = torch.tensor([[mean + math.sqrt(var), mean]], dtype=torch.float64)
        x_t = alpha * x0 + sigma * torch.tensor([[0.0, 1.0]], dtype=torch.float64)
        (x0_hat,) = predictions_along(model, x_t[None], [t])
        error = float((x0_hat - x0).square().sum())
        assert error == pytest.approx(var * sigma**2 / (alpha**2 * var + sigma**2), rel=1e-9)
        assert error == pytest.approx(var * (1 - shared_correlation(sde, t, var=var)), rel=1e-9)


def test_noise_and_shared_samples_are_those_of_their_numbers():
    x0 = torch.randn(3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    sde = SDES["vp"]
    together = noised(sde, x0, 0.5, numbers=range(3), seed=1)
    torch.testing.assert_close(noised(sde, x0[2:], 0.5, numbers=[2], seed=1)[0], together[2])
    sampler = make_sampler("ancestral", num_steps=5)
    assert isinstance(sampler, GridSampler)
    model = _gaussian(cov=torch.eye(4, dtype=torch.float64))
    all_of = draw_shared(model, sampler, together, 0.5, num_samples=3, numbers=range(3), seed=1).x0
    alone = draw_shared(model, sampler, together[1:2], 0.5, num_samples=2, numbers=[1], seed=1).x0
    torch.testing.assert_close(alone[0], all_of[1, :2])
    assert bool((all_of[:, 0] != all_of[:, 1]).all())


def test_input_that_cannot_be_says_so_in_one_line():
    a = torch.ones(1, 2)
    for arguments, options, said in [
        ((a, a, [1.5]), "lerp", r"weights must lie in \[0, 1\], got 1.5; 0 is the first end"),
        ((a, a, [float("nan")]), "lerp", "weights must lie in"),
        ((a, a, [0.5]), "slrp", "unknown way 'slrp'; did you mean 'slerp'"),
        ((a, torch.ones(1, 3), [0.5]), "lerp", r"one shape, got \[1, 2\] and \[1, 3\]; pass pairs"),
        ((a, -a, [0.5]), "slerp", "no way between opposite vectors"),
        ((a, 0 * a, [0.5]), "slerp", "a vector of zeros; take way=lerp"),
    ]:
        with pytest.raises(ValueError, match=said) as caught:
            interpolate(*arguments, way=options)
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=r"x0 must be pairs, \[2, P, ...\], got \[3, 1, 3\]"):
        interpolate_images(_gaussian(), _flow(), torch.zeros(3, 1, 3), 0.5, [0.5])
    with pytest.raises(ValueError, match=r"can start at t in .* got 0;"):
        interpolate_images(_gaussian(), _flow(), torch.zeros(2, 1, 3), 0.0, [0.5])
