"""L_T and L_t are the closed-form divergences between the Gaussians they are defined by."""

import numpy as np
import pytest
import torch
from likelihood_oracles import FRACTION, SDES, gaussian_kl, reverse_vars
from torch.distributions import Normal, kl_divergence

from likelihood import prior_kl, step_kl
from models import Prediction
from sde_lib import VE, VP, expand_like

SHAPE = (5, 2, 3)


def random(seed, scale=1.0):
    return scale * torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("t", [1.0, 0.98, 0.4])
def test_prior_kl_is_the_gaussian_kl(name, t):
    sde, x0 = SDES[name], random(0)
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = sde.alpha(time), sde.sigma(time)
    prior = Normal(torch.zeros(()).double(), torch.tensor(sde.prior_std).double())
    expected = kl_divergence(Normal(alpha * x0, sigma.expand(SHAPE)), prior).flatten(1).sum(1)
    # the plain formula keeps 1e-16 per element, of which there are 6
    torch.testing.assert_close(prior_kl(x0, sde, t), expected, rtol=1e-12, atol=1e-15 * 6)


def test_prior_kl_keeps_the_digits_that_are_left_at_t_1():
    # VP: sigma^2 = 1 - alpha^2, so that per element the KL is alpha^2 (x0^2 - 1) / 2 - log(1 - alpha^2) / 2
    x0, alpha_bar = torch.zeros(1, 1), np.exp(-10.05)
    expected = 0.5 * (-alpha_bar - np.log1p(-alpha_bar))
    # alpha_bar^2 / 4 = 5e-10 beside roundings of 1e-16 in log sigma, to first order
    assert float(prior_kl(x0, VP(), 1.0)[0]) == pytest.approx(expected, rel=1e-10)
    # VE: the mean alone is off, by x0
    x0 = random(1)
    expected = 0.5 * x0.square().flatten(1).sum(1) / 20.0**2
    torch.testing.assert_close(prior_kl(x0, VE(sigma_max=20.0), 1.0), expected, rtol=1e-12, atol=0)


def step_inputs(sde, dtype=torch.float64):
    t = torch.tensor([1.0, 0.6, 0.4, 0.3, 0.06], dtype=torch.float64) * sde.t_max
    s = torch.tensor([0.7, 0.02, 0.39, 0.04, 0.04], dtype=torch.float64) * sde.t_max
    x0, error = random(2), random(3, 0.3)
    fraction = torch.sigmoid(random(4))
    prediction = Prediction(
        x0=(x0 + error).to(dtype), eps=random(5).to(dtype), sigma=sde.sigma(t), variance_fraction=fraction.to(dtype)
    )
    return x0.to(dtype), prediction, s, t


@pytest.mark.parametrize("variance", FRACTION)
@pytest.mark.parametrize("name", SDES)
def test_step_kl_is_the_gaussian_kl(name, variance):
    sde = SDES[name]
    x0, prediction, s, t = step_inputs(sde)
    kl = step_kl(variance, prediction, x0, sde, s, t)
    assert kl.dtype == torch.float64
    assert kl.shape == (5,)
    x_t = random(6).numpy()
    for i in range(5):
        a_s, s_s, a_t, s_t = (float(v[i]) for v in (sde.alpha(s), sde.sigma(s), sde.alpha(t), sde.sigma(t)))
        small, large = reverse_vars(a_s, s_s, a_t, s_t)
        fraction = {"small": 0.0, "large": 1.0, "learned": prediction.variance_fraction[i].numpy()}[variance]
        var = small ** (1 - fraction) * large**fraction
        # both means in full, with the same x_t
        from_x_t = a_t / a_s * s_s**2 / s_t**2 * x_t[i]
        means = [a_s * large / s_t**2 * x[i].numpy() + from_x_t for x in (x0, prediction.x0)]
        expected = gaussian_kl(means[0], small, means[1], var).sum()
        # s = 0.39, t = 0.4: sigma_t^2 - ratio^2 sigma_s^2 keeps 13 digits
        np.testing.assert_allclose(float(kl[i]), expected, rtol=1e-9)
        by_torch = kl_divergence(
            Normal(torch.from_numpy(means[0]), small**0.5),
            Normal(torch.from_numpy(means[1]), torch.as_tensor(var, dtype=torch.float64).sqrt()),
        ).sum()
        np.testing.assert_allclose(float(kl[i]), float(by_torch), rtol=1e-9)


@pytest.mark.parametrize(("fraction", "fixed"), [(0.0, "small"), (1.0, "large")])
@pytest.mark.parametrize("name", SDES)
def test_learned_variance_ends_at_small_and_large(name, fraction, fixed):
    sde = SDES[name]
    x0, raw, s, t = step_inputs(sde)
    prediction = Prediction(raw.x0, raw.eps, raw.sigma, torch.full(SHAPE, fraction, dtype=torch.float64))
    learned = step_kl("learned", prediction, x0, sde, s, t)
    torch.testing.assert_close(learned, step_kl(fixed, prediction, x0, sde, s, t), rtol=1e-12, atol=1e-13)


def test_step_kl_vanishes_for_the_posterior_itself_and_is_least_at_its_own_variance():
    sde = SDES["vp"]
    x0, raw, s, t = step_inputs(sde)
    perfect = Prediction(x0, raw.eps, raw.sigma, raw.variance_fraction)
    assert float(step_kl("small", perfect, x0, sde, s, t).abs().max()) < 1e-28
    # of two Gaussians of one mean, (v / w - 1 + log(w / v)) / 2 a number, which no other variance w than v makes 0
    small, large = reverse_vars(sde.alpha(s), sde.sigma(s), sde.alpha(t), sde.sigma(t))
    for kind, fraction in (("large", torch.ones(SHAPE).double()), ("learned", raw.variance_fraction)):
        log_ratio = fraction * expand_like((large / small).log(), fraction)
        expected = 0.5 * ((-log_ratio).exp() - 1 + log_ratio).flatten(1).sum(1)
        torch.testing.assert_close(step_kl(kind, perfect, x0, sde, s, t), expected, rtol=1e-9, atol=0)


def test_float32_data_lose_no_more_than_their_own_rounding():
    sde = SDES["ddpm"]
    x0, prediction, s, t = step_inputs(sde, torch.float32)
    wide = Prediction(
        prediction.x0.double(), prediction.eps.double(), prediction.sigma, prediction.variance_fraction.double()
    )
    for variance in FRACTION:
        assert torch.equal(
            step_kl(variance, prediction, x0, sde, s, t), step_kl(variance, wide, x0.double(), sde, s, t)
        )


def test_learned_variance_of_a_model_without_it_is_refused():
    sde = SDES["vp"]
    x0, raw, s, t = step_inputs(sde)
    with pytest.raises(ValueError, match="'learned' needs a model that learns") as caught:
        step_kl("learned", Prediction(raw.x0, raw.eps, raw.sigma), x0, sde, s, t)
    assert "\n" not in str(caught.value)
