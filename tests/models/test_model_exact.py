"""The oracles themselves, against automatic differentiation, quadrature, 50-digit arithmetic and brute force."""

import math

import mpmath
import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid

from models import DiscreteScoreModel, GaussianMixtureScoreModel
from sde_lib import VE, VP, make_sde

SDES = ["vp", "vp_cosine", "subvp", "ve", "ddpm", "ncsn"]
TIMES = torch.tensor([0.002, 0.03, 0.3, 0.7, 0.98], dtype=torch.float64)
MEANS = torch.tensor([[0.5, -1.0, 0.2], [-0.7, 0.3, 1.0]], dtype=torch.float64)
WEIGHTS = [0.3, 0.7]


def factors(rank=3):
    return torch.randn(2, 3, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def covariances(rank=3):
    return factors(rank) @ factors(rank).mT


def mixture(sde, rank=3):
    return GaussianMixtureScoreModel(sde, means=MEANS, covs=covariances(rank), weights=WEIGHTS)


def noisy(model, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x0 = model.sample_data(len(TIMES), generator)
    return model.sde.perturb(x0, TIMES, torch.randn(x0.shape, generator=generator, dtype=torch.float64))


def marginal(sde, t, rank=3):
    """p_t as torch.distributions writes it."""
    alpha, sigma = sde.alpha(t[:1]), sde.sigma(t[:1])
    covs = alpha**2 * covariances(rank) + sigma**2 * torch.eye(3, dtype=torch.float64)
    normals = torch.distributions.MultivariateNormal(alpha * MEANS, covs)
    weights = torch.distributions.Categorical(torch.tensor(WEIGHTS, dtype=torch.float64))
    return torch.distributions.MixtureSameFamily(weights, normals)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("sde_name", SDES)
def test_the_score_is_the_gradient_of_the_density(sde_name, rank):
    sde = make_sde(sde_name)
    model = mixture(sde, rank)
    x_t = noisy(model)
    prediction = model(x_t, TIMES)
    for k in range(len(TIMES)):
        x, t = x_t[k : k + 1].clone().requires_grad_(True), TIMES[k : k + 1]
        log_prob = marginal(sde, t, rank).log_prob(x)
        torch.testing.assert_close(model.log_prob(x.detach(), t), log_prob.detach(), rtol=1e-7, atol=1e-7)
        gradient = torch.autograd.grad(log_prob.sum(), x)[0]
        torch.testing.assert_close(prediction.score[k : k + 1], gradient, rtol=1e-7, atol=1e-7)
    # the oracle agrees with its own density to more digits than Cholesky factors have
    leaf = x_t.clone().requires_grad_(True)
    own = torch.autograd.grad(model.log_prob(leaf, TIMES).sum(), leaf)[0]
    torch.testing.assert_close(prediction.score, own, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("rank", [1, 3])
@pytest.mark.parametrize("sde_name", SDES)
def test_tweedie(sde_name, rank):
    """E[x0 | x_t] = (x_t + sigma^2 score) / alpha, though x0 and eps are computed apart."""
    model = mixture(make_sde(sde_name), rank)
    x_t = noisy(model)
    prediction = model(x_t, TIMES)
    alpha, sigma = model.sde.alpha(TIMES)[:, None], model.sde.sigma(TIMES)[:, None]
    torch.testing.assert_close(alpha * prediction.x0 + sigma * prediction.eps, x_t, rtol=0, atol=1e-13)


@pytest.mark.parametrize("t", [0.05, 0.4, 0.9])
def test_the_posterior_mean_is_an_integral(t):
    """E[x0 | x_t] on a line, by quadrature over x0."""
    sde, time = VP(), torch.tensor([t], dtype=torch.float64)
    means, stds = np.array([-0.5, 0.8]), np.array([0.3, 0.1])
    model = GaussianMixtureScoreModel(
        sde, means=torch.tensor(means)[:, None], covs=torch.tensor(stds**2)[:, None, None], weights=WEIGHTS
    )
    alpha, sigma = sde.alpha(time).item(), sde.sigma(time).item()
    x0 = np.linspace(-4, 4, 20_001)
    prior = sum(w * stats.norm.pdf(x0, m, s) for w, m, s in zip(WEIGHTS, means, stds, strict=True))
    for x_t in (-1.0, 0.1, 0.9):
        weight = prior * stats.norm.pdf(x_t, alpha * x0, sigma)
        prediction = model(torch.tensor([[x_t]], dtype=torch.float64), time)
        mean = trapezoid(weight * x0, x0) / trapezoid(weight, x0)
        assert prediction.x0.item() == pytest.approx(mean, rel=1e-9)
        assert prediction.eps.item() == pytest.approx((x_t - alpha * mean) / sigma, rel=1e-8)
        assert model.log_prob(torch.tensor([[x_t]]), time).item() == pytest.approx(
            math.log(trapezoid(weight, x0)), rel=1e-5
        )


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("time", [0.0, 0.3, 0.6])
def test_little_noise_on_a_singular_covariance(time, seed):
    """sigma down to 1e-8 on data that fill a plane of space: eps = sigma (A A^T + sigma^2 I)^-1 x in 50 digits."""
    sde = VE(sigma_min=1e-8, sigma_max=1.0)
    t = torch.tensor([time], dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    factor = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 3), covs=(factor @ factor.mT)[None])
    sigma = sde.sigma(t).item()
    place, noise = torch.randn(2, generator=generator), torch.randn(3, generator=generator)
    x = (factor @ place.double() + sigma * noise.double())[None]
    with mpmath.workdps(50):
        a = mpmath.matrix(factor.tolist())
        exact_x = mpmath.matrix(x[0].tolist())
        score = -((a * a.T + mpmath.mpf(sigma) ** 2 * mpmath.eye(3)) ** -1) * exact_x
        expected_eps = [float(-sigma * value) for value in score]
        expected_x0 = [float(exact_x[i] + mpmath.mpf(sigma) ** 2 * score[i]) for i in range(3)]
    prediction = model(x, t)
    # x carries sigma eps with an absolute error of 1e-16
    eps = torch.tensor(expected_eps, dtype=torch.float64)
    torch.testing.assert_close(prediction.eps[0], eps, rtol=1e-6, atol=4e-15 / sigma)
    torch.testing.assert_close(prediction.x0[0], torch.tensor(expected_x0, dtype=torch.float64), rtol=0, atol=1e-14)


def test_point_masses_are_mixtures_too():
    """Covariance zero: the discrete oracle."""
    sde, weights = VP(), [0.2, 0.5, 0.3]
    points = torch.tensor([[-1.0, 0.0], [0.5, 0.5], [1.0, -1.0]], dtype=torch.float64)
    gaussian = GaussianMixtureScoreModel(sde, means=points, covs=torch.zeros(3, 2, 2), weights=weights)
    discrete = DiscreteScoreModel(sde, points=points, probs=weights)
    x_t = torch.randn(5, 2, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    a, b = gaussian(x_t, TIMES), discrete(x_t, TIMES)
    torch.testing.assert_close(a.x0, b.x0, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(a.eps, b.eps, rtol=1e-9, atol=1e-9)


def test_mean_covariance_and_samples_agree():
    model = mixture(VP())
    mean, cov = model.mean_and_cov()
    x = model.sample_data(40_000, torch.Generator().manual_seed(3))
    assert x.dtype == torch.float64
    standard_error = cov.diagonal().sqrt() / 40_000**0.5
    assert ((x.mean(0) - mean).abs() < 4 * standard_error).all()
    torch.testing.assert_close(torch.cov(x.T), cov, rtol=0.05, atol=0.05)
    # law of total covariance, term by term
    expected_mean = sum(w * m for w, m in zip(WEIGHTS, MEANS, strict=True))
    pairs = zip(WEIGHTS, MEANS, covariances(), strict=True)
    expected_cov = sum(w * (c + torch.outer(m - expected_mean, m - expected_mean)) for w, m, c in pairs)
    torch.testing.assert_close(mean, expected_mean)
    torch.testing.assert_close(cov, expected_cov)


def test_weights_default_to_equal_ones():
    sde, x = VP(), torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    equal = GaussianMixtureScoreModel(sde, means=MEANS, covs=covariances(), weights=[0.5, 0.5])
    default = GaussianMixtureScoreModel(sde, means=MEANS, covs=covariances())
    assert torch.equal(equal.log_prob(x, TIMES), default.log_prob(x, TIMES))


@pytest.mark.parametrize("sde_name", SDES)
def test_score_of_x_and_sigma_is_the_exact_score(sde_name):
    """The public face: s(x, sigma) = grad log p, asked by noise level and not by time."""
    sde = make_sde(sde_name)
    model = mixture(sde)
    t = torch.tensor([0.002, 0.03, 0.2, 0.3, 0.4], dtype=torch.float64)
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(5), dtype=torch.float64).requires_grad_(True)
    gradient = torch.autograd.grad(model.log_prob(x, t).sum(), x)[0]
    torch.testing.assert_close(model.score(x.detach(), sde.sigma(t)), gradient, rtol=1e-10, atol=1e-11)
    single = model.score(x.detach().float(), sde.sigma(t).float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), gradient, rtol=1e-4, atol=1e-4)


def test_score_refuses_sigma_out_of_range_or_shape():
    model, x = mixture(VE()), torch.zeros(2, 3)
    for bad in (0.009, 51.0, float("nan"), -1.0):
        with pytest.raises(ValueError, match=r"within \[0.01, 50\]") as error:
            model.score(x, torch.tensor([1.0, bad]))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="above 0"):
        mixture(VP()).score(x, torch.tensor([0.0, 0.5]))
    with pytest.raises(ValueError, match=r"sigma must have shape \[2\], got \[2, 1\]; pass sigma.flatten\(\)"):
        model.score(x, torch.ones(2, 1))
    # the ends themselves, as a float32 holds them
    assert model.score(x, torch.tensor([0.01, 50.0])).isfinite().all()


@pytest.mark.parametrize("sde_name", SDES)
def test_the_discrete_oracle_is_a_brute_force_sum(sde_name):
    sde = make_sde(sde_name)
    points = torch.tensor([[[-1.0, -1.0]], [[-1.0, 1.0]], [[0.0, 1.0]], [[1.0, 0.5]]], dtype=torch.float64)
    probs = [0.1, 0.2, 0.3, 0.4]
    model = DiscreteScoreModel(sde, points=points, probs=probs)
    x_t = sde.perturb(points[[0, 1, 2, 3, 0]], TIMES, 0.8 * torch.ones(5, 1, 2, dtype=torch.float64))
    prediction = model(x_t, TIMES)
    with mpmath.workdps(50):
        for k, t in enumerate(TIMES):
            alpha, sigma = mpmath.mpf(sde.alpha(t).item()), mpmath.mpf(sde.sigma(t).item())
            x = [mpmath.mpf(value) for value in x_t[k].flatten().tolist()]
            weights = []
            for p, point in zip(probs, points.flatten(1).tolist(), strict=True):
                distance = sum((a - alpha * b) ** 2 for a, b in zip(x, point, strict=True))
                weights.append(p * mpmath.exp(-distance / (2 * sigma**2)))
            for d in range(2):
                x0 = sum(w * point[d] for w, point in zip(weights, points.flatten(1).tolist(), strict=True))
                x0 /= sum(weights)
                eps = (x[d] - alpha * x0) / sigma
                assert prediction.x0[k, 0, d].item() == pytest.approx(float(x0), rel=1e-9, abs=1e-12)
                assert prediction.eps[k, 0, d].item() == pytest.approx(float(eps), rel=1e-9, abs=1e-12)
    assert torch.equal(prediction.sigma, sde.sigma(TIMES))
    assert model(x_t.float(), TIMES).x0.dtype == torch.float32


def test_the_discrete_oracle_takes_plain_numbers_and_impossible_points():
    model = DiscreteScoreModel(VP(), points=torch.tensor([-1.0, 0.0, 1.0]), probs=[0.5, 0.0, 0.5])
    x_t = torch.tensor([0.1, -0.3], dtype=torch.float64)
    t = torch.tensor([0.2, 0.6], dtype=torch.float64)
    alpha, sigma = model.sde.alpha(t), model.sde.sigma(t)
    # two equal points at -1 and 1: E[x0 | x_t] = tanh(alpha x_t / sigma^2)
    torch.testing.assert_close(model(x_t, t).x0, torch.tanh(alpha * x_t / sigma**2), rtol=1e-12, atol=1e-14)
    assert not (model.sample_data(1000, torch.Generator().manual_seed(0)) == 0).any()


def test_entropy():
    probs = [0.1, 0.2, 0.7, 0.0]
    model = DiscreteScoreModel(VP(), points=torch.arange(4.0)[:, None], probs=probs)
    assert model.entropy() == pytest.approx(stats.entropy(probs), rel=1e-14)
    uniform = DiscreteScoreModel(VP(), points=torch.arange(8.0)[:, None], probs=[1 / 8] * 8)
    assert uniform.entropy() == pytest.approx(3 * math.log(2), rel=1e-14)


def test_discrete_samples_have_the_probabilities():
    points, probs = torch.tensor([[-1.0], [0.0], [1.0]]), [0.2, 0.3, 0.5]
    x = DiscreteScoreModel(VP(), points=points, probs=probs).sample_data(20_000, torch.Generator().manual_seed(0))
    counts = [(x == value).sum().item() for value in (-1, 0, 1)]
    assert stats.chisquare(counts, [20_000 * p for p in probs]).pvalue > 1e-3


def test_a_fixed_variance_fraction_is_reported():
    model = DiscreteScoreModel(VP(), points=torch.eye(3), probs=[0.2, 0.3, 0.5], variance_fraction=0.25)
    fraction = model(torch.zeros(5, 3), TIMES).variance_fraction
    assert torch.equal(fraction, torch.full((5, 3), 0.25))


@pytest.mark.parametrize("weights", [[0.5, 0.6], [-0.1, 1.1], [1.0], [0.2, 0.3, 0.5], [0.0, 0.0], [float("nan"), 1.0]])
def test_weights_that_are_no_probabilities_are_refused(weights):
    message = "weights must be 2 non-negative numbers that sum to 1, got shape"
    with pytest.raises(ValueError, match=message):
        GaussianMixtureScoreModel(VP(), means=MEANS, covs=covariances(), weights=weights)
    with pytest.raises(ValueError, match=message):
        DiscreteScoreModel(VP(), points=torch.zeros(2, 3), probs=weights)


def test_what_is_no_mixture_is_refused():
    for means, covs in [(MEANS[0], covariances()), (MEANS, covariances()[:1]), (MEANS, torch.ones(2, 3))]:
        with pytest.raises(ValueError, match=r"means must be \[K, D\] and covs \[K, D, D\]"):
            GaussianMixtureScoreModel(VP(), means=means, covs=covs)
    for wrong in (-torch.eye(3), torch.ones(3, 3).triu()):
        with pytest.raises(ValueError, match="symmetric and positive semi-definite"):
            GaussianMixtureScoreModel(VP(), means=MEANS, covs=wrong.expand(2, 3, 3))


@pytest.mark.parametrize("build", [mixture, lambda sde: DiscreteScoreModel(sde, points=MEANS, probs=WEIGHTS)])
def test_times_of_the_wrong_shape_are_refused(build):
    for wrong, fix in [(torch.ones(5, 1), "pass t.flatten()"), (torch.ones(1), "pass t.flatten().expand(5)")]:
        with pytest.raises(ValueError) as error:
            build(VP())(torch.zeros(5, 3), wrong)
        assert str(error.value) == f"t must have shape [5], got {list(wrong.shape)}; {fix}"
