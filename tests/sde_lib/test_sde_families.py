"""alpha, sigma, f and g^2 against the papers' closed forms in 50 digits, and against each other."""

import mpmath
import numpy as np
import pytest
import torch
from mpmath import mpf

from sde_lib import VE, VP, CosineVP, RectifiedFlow, SubVP, Tabulated

TIMES = [1e-9, 1e-7, 1e-5, 1e-3, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1 - 1e-5, 1 - 1e-7]
BETA_MIN, BETA_MAX = mpf(0.1), mpf(20.0)  # the floats themselves: 0.1 in 50 digits would be another SDE
SIGMA_MIN, SIGMA_MAX = mpf(0.01), mpf(50.0)
OFFSET = mpf(0.008)


def scalar(value, dtype=torch.float64):
    return torch.tensor([value], dtype=dtype)


def vp_closed_form(t):
    """Song et al. 2021, Eq. 32-33: log alpha, sigma, f, g^2."""
    log_alpha = -(t**2) * (BETA_MAX - BETA_MIN) / 4 - t * BETA_MIN / 2
    beta = BETA_MIN + t * (BETA_MAX - BETA_MIN)
    return log_alpha, mpmath.sqrt(1 - mpmath.exp(2 * log_alpha)), -beta / 2, beta


def subvp_closed_form(t):
    """Song et al. 2021, Eq. 12 and 29."""
    log_alpha, _, drift, beta = vp_closed_form(t)
    integral = t**2 * (BETA_MAX - BETA_MIN) / 2 + t * BETA_MIN
    return log_alpha, 1 - mpmath.exp(2 * log_alpha), drift, beta * (1 - mpmath.exp(-2 * integral))


def ve_closed_form(t):
    """Song et al. 2021, Eq. 30-31."""
    ratio = SIGMA_MAX / SIGMA_MIN
    sigma = SIGMA_MIN * ratio**t
    return mpf(0), sigma, mpf(0), sigma**2 * 2 * mpmath.log(ratio)


def cosine_closed_form(t):
    """Nichol & Dhariwal 2021, Eq. 17; beta(t) = -d log alpha_bar / dt by 50-digit differences."""

    def alpha_bar(u):
        return (mpmath.cos((u + OFFSET) / (1 + OFFSET) * mpmath.pi / 2) ** 2) / (
            mpmath.cos(OFFSET / (1 + OFFSET) * mpmath.pi / 2) ** 2
        )

    beta = -mpmath.diff(lambda u: mpmath.log(alpha_bar(u)), t)
    return mpmath.log(alpha_bar(t)) / 2, mpmath.sqrt(1 - alpha_bar(t)), -beta / 2, beta


def rectified_closed_form(t, shift):
    """Liu et al. 2023: x_t = (1 - u) x0 + u eps; f = -u' / (1 - u) and g^2 = 2 u u' / (1 - u)."""
    u, rate = shift * t / (1 + (shift - 1) * t), shift / (1 + (shift - 1) * t) ** 2
    return mpmath.log(1 - u), u, -rate / (1 - u), 2 * u * rate / (1 - u)


FAMILIES = {
    "vp": (VP, vp_closed_form),
    "subvp": (SubVP, subvp_closed_form),
    "ve": (VE, ve_closed_form),
    "vp_cosine": (CosineVP, cosine_closed_form),
    "rectified_flow": (RectifiedFlow, lambda t: rectified_closed_form(t, mpf(1))),
    "rectified_flow_shifted": (lambda: RectifiedFlow(shift=3.0), lambda t: rectified_closed_form(t, mpf(3))),
}


def relative_error(got, expected):
    with mpmath.workdps(50):
        difference = abs(mpf(got.item()) - expected)
        return float(difference / abs(expected)) if expected else float(difference)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("time", TIMES)
def test_every_digit_of_the_closed_forms(family, dtype, time):
    build, closed_form = FAMILIES[family]
    sde, t = build(), scalar(time, dtype)
    with mpmath.workdps(50):
        exact_time = mpf(t.double().item())
        log_alpha, sigma, drift, diffusion_sq = closed_form(exact_time)
        alpha, log_snr = mpmath.exp(log_alpha), 2 * (log_alpha - mpmath.log(sigma))
    for name, expected, tolerance in [
        ("log_alpha", log_alpha, 4e-15),
        ("alpha", alpha, 2e-14),
        ("sigma", sigma, 2e-15 if family != "ve" else 2e-14),
        ("drift_coeff", drift, 2e-14),
        ("diffusion_sq", diffusion_sq, 2e-14),
    ]:
        got = getattr(sde, name)(t)
        assert got.dtype == torch.float64, name
        # near t = 1 one unit in the last place of 1 - t, which is all that t can hold, is this much
        resolution = 1e-15 / float(1 - exact_time) if family == "vp_cosine" else 0
        assert relative_error(got, expected) < tolerance + resolution, name
    assert abs(sde.log_snr(t).item() - float(log_snr)) < 1e-13 + resolution


@pytest.mark.parametrize("family", ["vp", "subvp", "vp_cosine", "rectified_flow", "rectified_flow_shifted"])
def test_there_is_no_noise_at_zero(family):
    sde = FAMILIES[family][0]()
    zero = scalar(0.0)
    assert sde.alpha(zero).item() == 1
    assert sde.sigma(zero).item() == 0
    assert sde.log_snr(zero).item() == float("inf")


def test_cosine_ends_without_signal():
    sde = CosineVP()
    assert sde.alpha(scalar(1.0)).item() == 0
    assert sde.sigma(scalar(1.0)).item() == 1
    assert sde.log_snr(scalar(sde.t_max)).isfinite().all()
    without_offset = CosineVP(s=0.0)
    # alpha = cos(pi t / 2), so 1 - alpha = 2 sin^2(pi t / 4)
    t = torch.tensor([1e-9, 1e-6, 1e-3], dtype=torch.float64)
    one_minus_alpha = -torch.expm1(without_offset.log_alpha(t))
    torch.testing.assert_close(one_minus_alpha, 2 * torch.sin(torch.pi * t / 4) ** 2, rtol=1e-14, atol=0)
    torch.testing.assert_close(without_offset.time_from_log_snr(without_offset.log_snr(t)), t, rtol=1e-14, atol=0)
    assert without_offset.time_from_log_snr(scalar(float("inf"))).item() == 0


def interior_times(sde):
    return torch.linspace(0.0137, min(0.993, sde.t_max), 61, dtype=torch.float64)


def test_drift_and_diffusion_are_the_derivatives(sde):
    t = interior_times(sde).requires_grad_(True)
    log_alpha, var = sde.log_alpha(t), (2 * sde.log_sigma(t)).exp()
    drift = torch.autograd.grad(log_alpha.sum(), t)[0] if log_alpha.requires_grad else torch.zeros_like(t)
    var_rate = torch.autograd.grad(var.sum(), t)[0]
    t = t.detach()
    torch.testing.assert_close(sde.drift_coeff(t), drift, rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(sde.diffusion_sq(t), var_rate - 2 * drift * var.detach(), rtol=1e-9, atol=1e-11)
    assert (sde.diffusion_sq(t) > 0).all()
    # and at times that a float32 holds, whatever the caller's gradient mode
    with torch.no_grad():
        single = sde.diffusion_sq(t.float())
    assert torch.equal(single, sde.diffusion_sq(t.float().double()))


def test_derivatives_are_finite_from_end_to_end(sde):
    t = torch.tensor([0.0, 1e-12, 1e-6, sde.t_min, sde.t_max], dtype=torch.float64)
    for function in (sde.drift_coeff, sde.diffusion_sq):
        assert function(t).isfinite().all()
        # the value at 0 is the limit from above
        torch.testing.assert_close(function(t[:1]), function(t[1:2]), rtol=1e-8, atol=1e-9)


def runge_kutta_step(rate, source, y, step):
    """y' = rate(t) y + source(t), given at the start, middle and end of a step."""
    k1 = rate[0] * y + source[0]
    k2 = rate[1] * (y + 0.5 * step * k1) + source[1]
    k3 = rate[1] * (y + 0.5 * step * k2) + source[1]
    k4 = rate[2] * (y + step * k3) + source[2]
    return y + step / 6 * (k1 + 2 * k2 + 2 * k3 + k4)


@pytest.mark.parametrize("pair", [(0.0, 0.3), (0.2, 0.7), (0.05, 0.98)])
def test_the_moment_equations_lead_to_alpha_and_sigma(sde, pair):
    """d mean/dt = f mean and d var/dt = 2 f var + g^2, integrated from a point mass at s."""
    s, t = scalar(pair[0]), scalar(pair[1])

    nodes = torch.arange(round(4000 * pair[0]), round(4000 * pair[1]) + 1, dtype=torch.float64) / 4000
    # evaluated strictly inside each step, because f and g^2 of a table jump at its first row
    places = torch.stack([nodes[:-1] + 1e-9, 0.5 * (nodes[:-1] + nodes[1:]), nodes[1:] - 1e-9], 1)
    f, g_sq = sde.drift_coeff(places).tolist(), sde.diffusion_sq(places).tolist()
    mean, var = 1.0, 0.0
    for drift, noise in zip(f, g_sq, strict=True):
        mean = runge_kutta_step(drift, [0.0] * 3, mean, 1 / 4000)
        var = runge_kutta_step([2 * value for value in drift], noise, var, 1 / 4000)
    assert mean == pytest.approx((sde.alpha(t) / sde.alpha(s)).item(), rel=1e-6)
    assert var == pytest.approx(sde.transition_var(s, t).item(), rel=1e-6)
    difference = sde.sigma(t) ** 2 - (sde.alpha(t) / sde.alpha(s) * sde.sigma(s)) ** 2
    torch.testing.assert_close(sde.transition_var(s, t), difference, rtol=1e-12, atol=1e-15)


def test_log_snr_falls(sde):
    t = torch.linspace(1e-6, sde.t_max, 20_011, dtype=torch.float64)
    assert (sde.log_snr(t).diff() < 0).all()
    assert (sde.sigma(t).diff() >= 0).all()


def test_log_snr_and_its_inverse(sde):
    t = torch.tensor([1e-6, 1e-5, 1e-3, 0.013, 0.1, 0.3, 0.5, 0.77, 0.95, sde.t_max], dtype=torch.float64)
    torch.testing.assert_close(sde.time_from_log_snr(sde.log_snr(t)), t, rtol=2e-12, atol=2e-15)
    single = sde.time_from_log_snr(sde.log_snr(t).float())
    assert single.dtype == torch.float64
    torch.testing.assert_close(sde.log_snr(single).float(), sde.log_snr(t).float())


def test_sigma_and_its_inverse(sde):
    t = torch.tensor([1e-6, 1e-5, 1e-3, 0.013, 0.1, 0.3, 0.5, 0.77, 0.95, sde.t_max], dtype=torch.float64)
    sigma = sde.sigma(t)
    again = sde.time_from_sigma(sigma)
    torch.testing.assert_close(sde.sigma(again), sigma, rtol=2e-14, atol=0)
    tells_times_apart = sigma < 0.9 * sde.prior_std
    torch.testing.assert_close(again[tells_times_apart], t[tells_times_apart], rtol=2e-11, atol=2e-15)


def test_what_is_out_of_reach_gives_the_nearer_end(sde):
    infinity = float("inf")
    high = torch.tensor([1e4, infinity], dtype=torch.float64)
    assert sde.time_from_log_snr(high).tolist() == [0, 0]
    torch.testing.assert_close(sde.time_from_log_snr(-high), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-15)
    assert sde.time_from_sigma(torch.zeros(1, dtype=torch.float64)).item() == 0
    large = torch.tensor([1e4, infinity], dtype=torch.float64)
    torch.testing.assert_close(sde.time_from_sigma(large), torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-15)
    if (below := 0.9 * sde.sigma(scalar(0.0))).item() > 0:
        assert sde.time_from_sigma(below).item() == 0


def test_prior_std_is_the_noise_at_the_end(sde):
    last = sde.sigma(scalar(1.0)).item()
    assert sde.prior_std == pytest.approx(last, rel=1e-4)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: VP(beta_min=0.0), "0 < beta_min <= beta_max"),
        (lambda: VP(beta_min=2.0, beta_max=1.0), "0 < beta_min <= beta_max"),
        (lambda: SubVP(beta_min=-1.0), "0 < beta_min <= beta_max"),
        (lambda: VE(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: VE(sigma_min=1.0, sigma_max=1.0), "0 < sigma_min < sigma_max"),
        (lambda: CosineVP(s=-0.1), "s >= 0"),
        (lambda: Tabulated.ncsn(sigma_min=0.0), "0 < sigma_min < sigma_max"),
        (lambda: Tabulated.ncsn(sigma_min=60.0), "0 < sigma_min < sigma_max"),
    ],
)
def test_parameters_out_of_range_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_constant_beta_is_a_vp_sde():
    sde = VP(beta_min=3.0, beta_max=3.0)
    t = torch.linspace(0.01, 1, 9, dtype=torch.float64)
    np.testing.assert_allclose(sde.alpha(t), np.exp(-1.5 * t.numpy()), rtol=1e-14)
    torch.testing.assert_close(sde.time_from_log_snr(sde.log_snr(t)), t, rtol=1e-13, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_alpha_and_sigma_together_are_alpha_and_sigma(sde, dtype):
    # rows of the tables, times between and below them, and both in one batch
    rows, between = torch.tensor([0.0, 0.02, 0.5, 1.0], dtype=dtype), torch.tensor(TIMES, dtype=dtype)
    for t in (rows, between, torch.cat([rows, between])):
        alpha, sigma = sde.alpha_sigma(t)
        assert torch.equal(alpha, sde.alpha(t)) and torch.equal(sigma, sde.sigma(t))
        assert alpha.dtype == sigma.dtype == torch.float64
