"""The bound of an exact denoiser: every term at T = 50, 200, 1000, never below the entropy, and where it tends to."""

import math

import numpy as np
import pytest
import torch
from likelihood_oracles import (
    EPS_WEIGHT,
    FRACTION,
    SDES,
    Pixels,
    entropy,
    lattice,
    posterior_means,
    quadrature_terms,
    random_pmf,
    rescaled_ddpm,
    terms_over_x_t,
)
from scipy.stats import norm
from sklearn.datasets import load_digits
from thinning import only

from likelihood import VariationalBound, prior_kl
from sde_lib import VE, NoiseStreams, Tabulated

BITS = 1 / math.log(2)
LIMIT = 0.5 * (1 - np.euler_gamma)


def exact_terms(sde, pmf, num_steps=None):
    """For each variance mean and variance of every term L_0, L_1, ... of one pixel, [n, K] each."""
    times = VariationalBound(num_levels=len(pmf), num_steps=num_steps).noisy_times(sde)
    return terms_over_x_t(sde.alpha(times).numpy(), sde.sigma(times).numpy(), pmf)


def prior_of(sde, pmf):
    return pmf @ prior_kl(torch.from_numpy(lattice(len(pmf)))[:, None], sde, sde.t_max).numpy()


def exact_totals(sde, pmf, num_steps=None):
    """The bound of each variance in nats per pixel."""
    found = exact_terms(sde, pmf, num_steps)
    return {variance: prior_of(sde, pmf) + float(pmf @ means.sum(0)) for variance, (means, _) in found.items()}


@pytest.mark.parametrize("name", SDES)
def test_sums_over_x_t_are_those_over_eps(name):
    # two quadratures of one integral, by different variables
    sde, pmf = SDES[name], random_pmf(17)
    times = VariationalBound(num_levels=17, num_steps=12).noisy_times(sde)
    alpha, sigma = sde.alpha(times).numpy(), sde.sigma(times).numpy()
    for variance, (means, spreads) in terms_over_x_t(alpha, sigma, pmf).items():
        expected_means, expected_spreads = quadrature_terms(alpha, sigma, pmf, variance)
        # eps is cut off at 9 standard deviations in both, and the rarest of their integrands come from there
        np.testing.assert_allclose(means, expected_means, rtol=1e-8, atol=1e-11)
        np.testing.assert_allclose(spreads, expected_spreads, rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
@pytest.mark.parametrize("num_steps", only((50,), [50, 200, 1000]))
def test_every_term_of_every_chain_is_its_own_integral(num_steps, num_levels):
    sde, pmf, pixels = rescaled_ddpm(num_steps), random_pmf(num_levels), 512 if num_levels == 256 else 4096
    found = exact_terms(sde, pmf)
    x0 = torch.from_numpy(np.random.default_rng(9).choice(lattice(num_levels), (1, pixels), p=pmf))
    for variance, (means, spreads) in found.items():
        bound = VariationalBound(num_levels=num_levels, variance=variance)
        terms = bound(Pixels(sde, pmf), x0, noise=NoiseStreams(1, [0]))
        ours = torch.cat([terms.reconstruction[:, None], terms.step_nats], 1)[0].numpy() / pixels
        mean = means @ pmf
        # over draws of levels and of noise
        stderr = np.sqrt((((means - mean[:, None]) ** 2 + spreads) @ pmf) / pixels)
        assert len(ours) == num_steps
        # up to 3000 terms, of which the rarest come from one pixel in hundreds
        assert (np.abs(ours - mean) < 5.5 * stderr + 1e-12).all(), np.abs((ours - mean) / stderr).max()
        total = prior_of(sde, pmf) + mean.sum()
        assert abs(float(terms.total) / pixels - total) < 4 * np.sqrt((stderr**2).sum()) + 1e-4


CHAINS = {
    "linear 50": (lambda: rescaled_ddpm(50), None),
    "linear 200": (lambda: rescaled_ddpm(200), None),
    "linear 1000": (Tabulated.ddpm, None),
    "linear 1000, respaced to 50": (Tabulated.ddpm, 50),
    "linear 1000, respaced to 3": (Tabulated.ddpm, 3),
    "cosine 1000": (Tabulated.improved_ddpm, None),
    "cosine 4000, respaced to 50": (lambda: Tabulated.improved_ddpm(num_steps=4000), 50),
}


@pytest.mark.parametrize("num_levels", only((17,), [2, 17, 256]))
@pytest.mark.parametrize("chain", CHAINS)
def test_no_chain_is_below_the_entropy(chain, num_levels):
    build, num_steps = CHAINS[chain]
    sde, pmf = build(), random_pmf(num_levels, seed=1)
    if num_levels == 256 and (sde.table_size or 0) >= 1000 and num_steps is None:
        # the sum of all is in the test of every term; here a few terms, drawn as they are measured in practice
        model, images, pixels = Pixels(sde, pmf), 40, 64
        x0 = torch.from_numpy(np.random.default_rng(3).choice(lattice(num_levels), (images, pixels), p=pmf))
        for variance in FRACTION:
            bound = VariationalBound(
                num_levels=num_levels, variance=variance, steps_per_image=8, step_sampling="importance"
            )
            bound.fit_steps(model, x0[:4], noise=NoiseStreams(1, range(4)))
            values = bound(model, x0[4:], noise=NoiseStreams(2, range(4, images))).total.numpy() / pixels
            assert values.mean() > entropy(pmf) - 4 * values.std(ddof=1) / math.sqrt(len(values))
        return
    for variance, total in exact_totals(sde, pmf, num_steps).items():
        # up to the integrals' truncation at 9 standard deviations
        assert total > entropy(pmf) - 1e-9, variance


@pytest.mark.slow
def test_gap_of_the_small_variance_closes_as_one_over_the_number_of_steps():
    gaps = {}
    for name, pmf in {"uniform": np.full(17, 1 / 17), "random": random_pmf(17)}.items():
        for num_steps in (500, 1000, 2000):
            total = exact_totals(rescaled_ddpm(num_steps), pmf)["small"]
            gaps[name, num_steps] = (total - entropy(pmf)) * BITS
    # in bits, for one variable of 17 levels; the more levels are in use, the larger
    assert gaps["uniform", 1000] == pytest.approx(0.2475, abs=1e-4)
    assert gaps["random", 1000] == pytest.approx(0.2233, abs=1e-4)
    pixels = np.bincount(load_digits().images.astype(int).ravel(), minlength=17)
    pmf = pixels / pixels.sum()
    assert (exact_totals(Tabulated.ddpm(), pmf)["small"] - entropy(pmf)) * BITS == pytest.approx(0.1510, abs=1e-4)
    for name in ("uniform", "random"):
        for num_steps in (500, 1000):
            assert 1.9 < gaps[name, num_steps] / gaps[name, 2 * num_steps] < 2.3


@pytest.mark.slow
def test_gap_of_the_large_variance_tends_to_a_constant():
    """1/2 (1 - gamma) nats a dimension: the first steps' variances are wrong by (i - 1) / i, however many steps follow.

    KL of equal means is 1/2 (r - 1 - log r), and the sum over i > 1 of 1/2 (log(i / (i - 1)) - 1 / i) is that number.
    """
    i = np.arange(2, 10_000_001)
    assert 0.5 * (-np.log1p(-1 / i) - 1 / i).sum() == pytest.approx(LIMIT, abs=1e-7)
    assert math.isclose(LIMIT * BITS, 0.30497, abs_tol=1e-5)
    # constant betas, so that alpha_bar, and not the table's shape, is all there is; of one bit
    pmf, excess = np.array([0.5, 0.5]), []
    for num_steps in (1000, 2000, 4000, 8000):
        sde = Tabulated.from_betas(torch.full((num_steps,), 10 / num_steps, dtype=torch.float64))
        excess.append((exact_totals(sde, pmf)["large"] - entropy(pmf) - LIMIT) * BITS)
    # on record in bits; what is left shrinks by a factor between sqrt 2 and 2 as T doubles
    assert excess == pytest.approx([-0.01199, -0.00722, -0.00423, -0.00243], abs=1e-5)


def test_gap_of_the_large_variance_on_the_linear_table():
    # the linear table's betas rise 200-fold, so that it comes near the limit late
    pmf = np.array([0.5, 0.5])
    gaps = [(exact_totals(rescaled_ddpm(num_steps), pmf)["large"] - entropy(pmf)) * BITS for num_steps in (1000, 4000)]
    assert gaps == pytest.approx([0.4872, 0.3725], abs=1e-4)
    assert gaps[0] > gaps[1] > LIMIT * BITS


@pytest.mark.parametrize("variance", only(("large",), ["small", "large", "learned"]))
@pytest.mark.slow
def test_a_chain_that_ends_at_the_least_noise_of_ve_is_decoded_with_that_noise_however_short_its_steps(variance):
    # sigma_min of two and a half bins: a decoder as narrow as the last step's posterior costs tens of bits, and the
    # more of them the more steps there are
    sde, pmf, levels = VE(sigma_min=0.02, sigma_max=100.0), np.full(256, 1 / 256), lattice(256)
    mean, edges = posterior_means(1.0, 0.02, tuple(pmf)), (levels[1:] + levels[:-1]) / 2
    low, high = np.r_[-np.inf, edges][:, None], np.r_[edges, np.inf][:, None]
    mass = norm.cdf(high, mean, 0.02) - norm.cdf(low, mean, 0.02)
    # what underflows has a weight of 1e-15
    expected = float(pmf @ (-np.log(np.maximum(mass, 1e-300)) @ EPS_WEIGHT))
    x0 = torch.from_numpy(np.repeat(levels, 8)[None])
    for num_steps in (20, 80):
        bound = VariationalBound(num_levels=256, num_steps=num_steps, variance=variance)
        terms = bound(Pixels(sde, pmf), x0, noise=NoiseStreams(0, [0]))
        assert float(terms.reconstruction) / 2048 == pytest.approx(expected, abs=0.07)
    # at 8 bits it is tight, but for the steps
    assert 8 - 0.15 < float(terms.total) / 2048 * BITS < 8.7
