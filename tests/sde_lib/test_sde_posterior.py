"""q(x_t | x0), q(x_s | x_t, x0) and the prior, against integrals, Ho et al.'s formulas and scipy."""

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import trapezoid

from sde_lib import VE, VP, CosineVP, NoiseStreams, SubVP, Tabulated


def times(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_perturb_is_alpha_x0_plus_sigma_eps(sde):
    x0, eps = torch.randn(2, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = times(0.1, 0.5, 0.9)
    x_t = sde.perturb(x0, t, eps)
    for k in range(3):
        expected = sde.alpha(t)[k].item() * x0[k] + sde.sigma(t)[k].item() * eps[k]
        torch.testing.assert_close(x_t[k], expected, rtol=1e-15, atol=0)
    assert sde.perturb(x0.float(), t, eps.float()).dtype == torch.float32
    assert sde.perturb(x0[:, 0, 0, 0], t, eps[:, 0, 0, 0]).shape == (3,)


@pytest.mark.parametrize("pair", [(0.02, 0.05), (0.1, 0.9), (0.5, 0.51), (0.6, 0.98)])
def test_posterior_is_bayes_rule(sde, pair):
    """q(x_s | x_t, x0) ~ q(x_t | x_s) q(x_s | x0), integrated on a line."""
    s, t = times(pair[0]), times(pair[1])
    alpha_s, alpha_t, sigma_s, sigma_t = (f(u).item() for f in (sde.alpha, sde.sigma) for u in (s, t))
    x0 = 0.7
    x_t = alpha_t * x0 + 0.8 * sigma_t
    ratio = alpha_t / alpha_s
    transition_std = np.sqrt(sigma_t**2 - ratio**2 * sigma_s**2)
    # both factors have their mass here, whichever is the narrower
    reach = 12 * min(sigma_s, transition_std / ratio)
    precision = sigma_s**-2 + (ratio / transition_std) ** 2
    center = (alpha_s * x0 / sigma_s**2 + ratio * x_t / transition_std**2) / precision
    x_s = np.linspace(center - reach, center + reach, 20_001)
    log_density = stats.norm.logpdf(x_t, ratio * x_s, transition_std) + stats.norm.logpdf(x_s, alpha_s * x0, sigma_s)
    density = np.exp(log_density - log_density.max())
    density /= trapezoid(density, x_s)
    mean = trapezoid(density * x_s, x_s)
    var = trapezoid(density * (x_s - mean) ** 2, x_s)
    got_mean, got_var = sde.posterior(times(x0)[:, None], times(x_t)[:, None], s, t)
    assert got_mean.item() == pytest.approx(mean, rel=1e-9, abs=1e-10)
    assert got_var.item() == pytest.approx(var, rel=1e-8)


def test_posterior_of_a_chain_is_the_posterior_of_a_jump(sde):
    """E and Var of x_r given x_t and x0, through x_s, for r < s < t: the coefficients are those of one process."""
    r, s, t = times(0.2), times(0.5), times(0.8)
    a_s, b_s, var_s = sde.posterior_coefficients(s, t)
    a_r, b_r, var_r = sde.posterior_coefficients(r, s)
    a, b, var = sde.posterior_coefficients(r, t)
    torch.testing.assert_close(a_r + b_r * a_s, a, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(b_r * b_s, b, rtol=1e-11, atol=1e-14)
    torch.testing.assert_close(var_r + b_r**2 * var_s, var, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("sde", [VP(), CosineVP(), SubVP(), Tabulated.ddpm(), Tabulated.ncsn()])
@pytest.mark.parametrize("t", [1e-4, 0.5, 1.0])
def test_posterior_at_zero_is_the_data(sde, t):
    x0, x_t = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(1))
    mean, var = sde.posterior(x0, x_t, torch.zeros(4).double(), torch.full((4,), t).double())
    assert torch.equal(mean, x0)
    assert var.tolist() == [0, 0, 0, 0]


def test_ve_keeps_its_noise_at_zero():
    sde = VE()
    _, _, var = sde.posterior_coefficients(times(0.0), times(0.5))
    low, high = 0.01**2, sde.sigma(times(0.5)).item() ** 2
    assert var.item() == pytest.approx(low * (high - low) / high, rel=1e-12)


def test_posterior_where_no_signal_is_left():
    """At the cosine schedule's t = 1, x_t says nothing: q(x_s | x_t, x0) = q(x_s | x0)."""
    sde, s = CosineVP(), times(0.0, 0.3, 0.9)
    a, b, var = sde.posterior_coefficients(s, times(1.0, 1.0, 1.0))
    assert torch.equal(a, sde.alpha(s))
    assert b.tolist() == [0, 0, 0]
    torch.testing.assert_close(var, sde.sigma(s) ** 2, rtol=1e-15, atol=0)


@pytest.mark.parametrize("size", [10, 1000])
def test_on_the_table_it_is_equation_7_of_ho(size):
    betas = np.linspace(1e-4, 0.02, size)
    alpha_bar = np.cumprod(1 - betas)
    before = np.concatenate([[1.0], alpha_bar[:-1]])
    # 1 - alpha_bar by its own recursion, which does not cancel
    one_minus = np.zeros(size + 1)
    for i, beta in enumerate(betas):
        one_minus[i + 1] = one_minus[i] * (1 - beta) + beta
    now, past = one_minus[1:], one_minus[:-1]
    t = torch.arange(1, size + 1, dtype=torch.float64) / size
    s = torch.arange(size, dtype=torch.float64) / size
    sde = Tabulated.ddpm(num_steps=size)
    a, b, var = sde.posterior_coefficients(s, t)
    np.testing.assert_allclose(a, np.sqrt(before) * betas / now, rtol=1e-10)
    np.testing.assert_allclose(b, np.sqrt(1 - betas) * past / now, rtol=1e-10)
    np.testing.assert_allclose(var, past / now * betas, rtol=1e-10)
    np.testing.assert_allclose(sde.transition_var(s, t), betas, rtol=1e-10)


def test_times_in_the_wrong_order_are_refused(sde):
    x = torch.zeros(3, 2)
    with pytest.raises(ValueError, match=r"s must be below t, got s = 0\.6, t = 0\.4; swap them"):
        sde.posterior(x, x, times(0.1, 0.6, 0.2), times(0.3, 0.4, 0.5))
    with pytest.raises(ValueError, match="s must be below t"):
        sde.posterior_coefficients(times(0.5), times(0.5))


def test_a_time_of_the_wrong_shape_is_refused(sde):
    x = torch.zeros(16, 3)
    with pytest.raises(ValueError) as error:
        sde.perturb(x, torch.full((16, 1), 0.5), x)
    assert str(error.value) == "t must have shape [16], got [16, 1]; pass t.flatten()"
    with pytest.raises(ValueError, match=r"pass t.flatten\(\).expand\(16\)"):
        sde.perturb(x, torch.tensor(0.5), x)


def test_prior_log_prob_is_the_normal_density(sde):
    x = 3 * torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(2))
    expected = stats.norm(scale=sde.prior_std).logpdf(x.double().numpy()).reshape(5, -1).sum(1)
    got = sde.prior_log_prob(x)
    assert got.dtype == torch.float64
    np.testing.assert_allclose(got, expected, rtol=1e-12)
    np.testing.assert_allclose(
        sde.prior_log_prob(x[:, 0, 0, 0]), stats.norm(scale=sde.prior_std).logpdf(x[:, 0, 0, 0].double()), rtol=1e-12
    )


def test_prior_samples_follow_it(sde):
    x = sde.prior_sample((3, 32, 32), NoiseStreams(3, range(8)))
    assert x.shape == (8, 3, 32, 32)
    assert x.dtype == torch.float32
    assert stats.kstest(x.flatten().numpy(), stats.norm(scale=sde.prior_std).cdf).pvalue > 1e-3
    assert torch.equal(x[5:], sde.prior_sample((3, 32, 32), NoiseStreams(3, range(5, 8))))
