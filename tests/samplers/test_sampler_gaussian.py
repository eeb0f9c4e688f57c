"""On a single Gaussian every sampler is linear: its output is known in closed form, to rounding."""

import math

import numpy as np
import pytest
import torch
from sampler_oracles import SDES, GaussianModel, WithFraction, coefficients, reverse_step

from samplers import AncestralSampler, DDIMSampler
from sde_lib import VE, VP, CosineVP, NoiseStreams, SubVP

KINDS = {
    "small": "small",
    "large": "large",
    "learned": ("learned", 0.3),
    "ddim_0": ("ddim", 0.0),
    "ddim_half": ("ddim", 0.5),
    "ddim_1": ("ddim", 1.0),
}
MEAN, VAR = 0.7, 0.3


def make(kind, **kwargs):
    if kind[0] == "ddim":
        return DDIMSampler(eta=kind[1], **kwargs)
    return AncestralSampler(variance=kind if isinstance(kind, str) else "learned", **kwargs)


def model_for(sde, kind):
    model = GaussianModel(sde, mean=MEAN, var=VAR)
    return WithFraction(model, kind[1]) if kind[0] == "learned" else model


def linear_steps(sde, sampler, kind):
    """(gain, offset, noise std) of every step, and the affine final denoising, in numpy."""
    alpha, sigma = coefficients(sde, sampler.times(sde))
    steps = []
    for i in range(len(alpha) - 1):
        on_x0, on_eps, on_x, std = reverse_step(kind, alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        power = alpha[i] ** 2 * VAR + sigma[i] ** 2
        gain = (on_x0 * alpha[i] * VAR + on_eps * sigma[i]) / power
        steps.append((gain + on_x, on_x0 * MEAN - gain * alpha[i] * MEAN, std))
    if sigma[-1] > 0:
        gain = alpha[-1] * VAR / (alpha[-1] ** 2 * VAR + sigma[-1] ** 2)
        steps.append((gain, MEAN - gain * alpha[-1] * MEAN, 0.0))
    return steps


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", SDES)
def test_every_step_is_the_papers_step_with_the_same_noise(name, kind):
    sde = SDES[name]
    sampler = make(kind, num_steps=25, grid="uniform", record_trajectory=True)
    x_T = sde.prior_sample((5,), NoiseStreams(0, range(3))).double()
    result = sampler.sample(model_for(sde, kind), x_T, noise=NoiseStreams(1, range(3)))
    replay = NoiseStreams(1, range(3))
    x = x_T.numpy()
    steps = linear_steps(sde, sampler, kind)
    assert len(result.trajectory) == len(steps) + 1
    for (gain, offset, std), state in zip(steps, result.trajectory[1:], strict=True):
        x = gain * x + offset + (std * replay.normal((5,)).double().numpy() if std else 0.0)
        # sigma_t^2 - ratio^2 sigma_s^2 cancels in the plain formulas, by 1e3 at most on these grids
        np.testing.assert_allclose(state.numpy(), x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", SDES)
def test_output_mean_and_variance_follow_the_recursion(name, kind):
    sde = SDES[name]
    sampler = make(kind, num_steps=8, grid="uniform")
    draws = 120_000
    x_T = sde.prior_sample((draws // 4,), NoiseStreams(2, range(4))).double()
    x0 = sampler.sample(model_for(sde, kind), x_T, noise=NoiseStreams(3, range(4))).x0
    mean, var = 0.0, sde.prior_std**2
    for gain, offset, std in linear_steps(sde, sampler, kind):
        mean, var = gain * mean + offset, gain**2 * var + std**2
    # 5 standard errors of the mean and of the variance of a Gaussian
    assert abs(float(x0.mean()) - mean) < 5 * math.sqrt(var / draws)
    assert abs(float(x0.var()) / var - 1) < 5 * math.sqrt(2 / draws)


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("name", SDES)
def test_recursion_reaches_the_data_as_the_grid_is_refined(name, kind):
    # what the two tests above tie the samplers to is itself right: from the exact marginal, its bias vanishes
    sde = SDES[name]
    errors = []
    for num_steps in (50, 200):
        sampler = make(kind, num_steps=num_steps, grid="log_snr")
        alpha, sigma = coefficients(sde, sampler.times(sde)[:1])
        mean, var = alpha[0] * MEAN, alpha[0] ** 2 * VAR + sigma[0] ** 2
        for gain, offset, std in linear_steps(sde, sampler, kind):
            mean, var = gain * mean + offset, gain**2 * var + std**2
        errors.append(abs(mean - MEAN) + abs(var - VAR))
    # first order: a quarter of the bias at four times the steps, and 0.027 at most here, as measured
    assert errors[1] < errors[0] / 3
    assert errors[1] < 0.03


@pytest.mark.parametrize(
    ("sde", "grid"),
    [(VP(), "quadratic"), (CosineVP(), "uniform"), (SubVP(), "uniform"), (VE(sigma_max=20.0), "uniform")],
    ids=["vp", "cosine", "subvp", "ve"],
)
def test_ddim_converges_with_order_1(sde, grid):
    # the probability flow of a Gaussian keeps (x - alpha mean) / sqrt(alpha^2 var + sigma^2)
    model = GaussianModel(sde, mean=MEAN, var=VAR)
    errors = []
    for num_steps in (200, 400, 800):
        sampler = DDIMSampler(num_steps=num_steps, grid=grid, denoise_final=False)
        ends = sampler.times(sde)[[0, -1]]
        (alpha_T, alpha_0), (sigma_T, sigma_0) = coefficients(sde, ends)
        x_T = torch.linspace(-2, 2, 9, dtype=torch.float64)[None] * sde.prior_std
        exact = alpha_0 * MEAN + (x_T - alpha_T * MEAN) * math.sqrt(
            (alpha_0**2 * VAR + sigma_0**2) / (alpha_T**2 * VAR + sigma_T**2)
        )
        errors.append(float((sampler.sample(model, x_T).x0 - exact).abs().max()))
    orders = np.log2(np.array(errors[:-1]) / errors[1:])
    # error = c / n (1 + O(log n / n)), as measured: off 1 by 0.011 at most
    assert np.abs(orders - 1).max() < 0.03


@pytest.mark.parametrize("name", SDES)
@pytest.mark.parametrize("grid", ["uniform", "quadratic", "log_snr", "karras"])
def test_ddim_with_eta_1_is_ancestral_sampling(name, grid):
    sde = SDES[name]
    model = GaussianModel(sde)
    x_T = sde.prior_sample((6,), NoiseStreams(4, range(3))).double()
    results = [
        sampler.sample(model, x_T, noise=NoiseStreams(5, range(3))).trajectory
        for sampler in (
            AncestralSampler(num_steps=20, grid=grid, record_trajectory=True),
            DDIMSampler(eta=1, num_steps=20, grid=grid, record_trajectory=True),
        )
    ]
    scale = results[0].abs().amax(dim=(1, 2), keepdim=True)
    assert float(((results[0] - results[1]) / scale).abs().max()) < 1e-12


@pytest.mark.parametrize("fraction", [0.0, 1.0])
@pytest.mark.parametrize("name", SDES)
def test_learned_variance_ends_at_small_and_large(name, fraction):
    sde = SDES[name]
    model = WithFraction(GaussianModel(sde), fraction)
    x_T = sde.prior_sample((6,), NoiseStreams(6, range(3))).double()
    learned, fixed = (
        AncestralSampler(num_steps=20, variance=variance).sample(model, x_T, noise=NoiseStreams(7, range(3))).x0
        for variance in ("learned", "large" if fraction else "small")
    )
    torch.testing.assert_close(learned, fixed, rtol=1e-12, atol=1e-12)


def test_learned_variance_is_each_elements_own():
    sde = SDES["vp"]
    model = WithFraction(GaussianModel(sde), lambda x: (torch.arange(x.shape[1]) == 1).to(x).expand_as(x))
    sampler = {v: AncestralSampler(num_steps=5, variance=v) for v in ("small", "large", "learned")}
    x_T = sde.prior_sample((2,), NoiseStreams(8, range(3))).double()
    out = {v: s.sample(model, x_T, noise=NoiseStreams(9, range(3))).x0 for v, s in sampler.items()}
    torch.testing.assert_close(out["learned"][:, 0], out["small"][:, 0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(out["learned"][:, 1], out["large"][:, 1], rtol=1e-12, atol=1e-12)
