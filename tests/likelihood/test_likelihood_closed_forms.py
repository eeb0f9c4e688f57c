"""Dequantization, probes, priors and conditions in closed form: a Gaussian's flow is affine, so all are known."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from test_likelihood_flow import TIGHT, noise_ratio, one, points
from thinning import one_each, only

from likelihood import ContinuousBound, FlowLikelihood, VariationalBound, prior_kl
from likelihood.flow_steps import DivergenceSlope, LogDensityFlow
from models import CallCounter, FlowEquation, GaussianMixtureScoreModel, Prediction, ScoreModel
from sde_lib import VE, VP, CosineVP, NoiseStreams, SubVP, points_of

MEAN, WIDTH, LEVELS, HALF = 0.2, 0.3, 5, 0.25


def law(sde, t_end):
    """Mean and standard deviation of the ODE's y at t_end, for data N(MEAN, WIDTH^2)."""
    first, last = noise_ratio(sde, t_end), noise_ratio(sde, sde.t_max)
    gain = math.sqrt((WIDTH**2 + first**2) / (WIDTH**2 + last**2))
    return MEAN - gain * MEAN, gain * sde.prior_std / float(sde.alpha(one(sde.t_max)))


def measure(sde, dequantization, num_samples, t_end):
    """-log p of each of 5 levels, [5, images], in nats."""
    images = 600 if num_samples == 1 else 150
    model = GaussianMixtureScoreModel(
        sde, means=torch.tensor([[MEAN]]), covs=torch.tensor([[[WIDTH**2]]], dtype=torch.float64)
    )
    flow = FlowLikelihood(
        num_levels=LEVELS,
        dequantization=dequantization,
        num_importance_samples=num_samples,
        divergence="exact",
        t_end=t_end,
        rtol=1e-5,
        atol=1e-5,
    )
    x0 = torch.linspace(-1, 1, LEVELS, dtype=torch.float64).repeat_interleave(images)[:, None]
    terms = flow(model, x0, noise=NoiseStreams(0, range(len(x0))))
    return terms.total.reshape(LEVELS, images).numpy()


def log_weights(sde, dequantization, t_end, level, drawn):
    """log p(y) + log P(x0 | y) - log q(y | x0) at draws of u in [0, 1], or of z."""
    mean, std = law(sde, t_end)
    if dequantization == "uniform":
        return norm.logpdf(level + 2 * HALF * (drawn - 0.5), mean, std) + math.log(2 * HALF)
    r = noise_ratio(sde, t_end)
    y = level + r * drawn
    decoded = MEAN + WIDTH**2 / (WIDTH**2 + r**2) * (y - MEAN)
    low = -np.inf if level == -1 else (level - HALF - decoded) / r
    high = np.inf if level == 1 else (level + HALF - decoded) / r
    return norm.logpdf(y, mean, std) + np.log(norm.cdf(high) - norm.cdf(low)) - norm.logpdf(drawn) + math.log(r)


SDES = {"vp": (VP(), 0.05), "subvp": (SubVP(), 0.1), "ve": (VE(sigma_min=0.1, sigma_max=20.0), None)}


@pytest.mark.parametrize("num_samples", only((1,), [1, 8]))
@pytest.mark.parametrize(
    ("name", "dequantization"),
    [*one_each(["vp", "ve"], ["uniform", "decoder"]), *one_each(["subvp"], [], slow=["uniform", "decoder"])],
)
def test_dequantized_bounds_are_their_closed_forms_and_fall_to_the_mass_of_the_bin(name, dequantization, num_samples):
    sde, t_end = SDES[name]
    begin = 0.0 if t_end is None else t_end
    values = measure(sde, dequantization, num_samples, t_end)
    rng = np.random.default_rng(0)
    for level, nats in zip(np.linspace(-1, 1, LEVELS), values, strict=True):
        shape = (20_000, num_samples)
        drawn = rng.random(shape) if dequantization == "uniform" else rng.standard_normal(shape)
        weights = log_weights(sde, dequantization, begin, level, drawn)
        expected = -np.log(np.exp(weights).mean(1))
        stderr = math.hypot(nats.std(ddof=1) / math.sqrt(len(nats)), expected.std() / math.sqrt(len(expected)))
        # beside the solver's own error
        assert abs(nats.mean() - expected.mean()) < 4 * stderr + 5e-4
        if dequantization == "uniform":
            mean, std = law(sde, begin)
            low, high = (level - HALF - mean) / std, (level + HALF - mean) / std
            mass = -math.log(norm.cdf(high) - norm.cdf(low) if level < mean else norm.sf(low) - norm.sf(high))
            # K = 1 in full: the mean of (y - mean)^2 over the bin
            once = 0.5 * ((level - mean) ** 2 + HALF**2 / 3) / std**2 - norm.logpdf(0, 0, std) - math.log(2 * HALF)
            assert nats.mean() > mass - 4 * stderr - 5e-4
            if num_samples == 1:
                assert abs(nats.mean() - once) < 4 * stderr + 5e-4
            else:
                assert nats.mean() - mass < 0.3 * (once - mass) + 4 * stderr + 5e-4


class OfWidth(ScoreModel):
    """Gaussians of covariance cond^2 C; narrow ones take more steps."""

    COV = torch.tensor([[1.0, 0.6], [0.6, 0.8]], dtype=torch.float64)

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = (value[:, None, None] for value in self.sde.alpha_sigma(t))
        cov = alpha**2 * cond[:, None, None] ** 2 * self.COV + sigma**2 * torch.eye(2, dtype=torch.float64)
        eps = sigma[:, 0] * torch.linalg.solve(cov, x_t)
        return Prediction(x0=x_t, eps=eps, sigma=self.sde.sigma(t))


def test_probes_stay_with_their_samples_as_batch_mates_leave():
    widths = torch.tensor([1.0, 0.02, 0.3, 1.0], dtype=torch.float64)
    x = widths[:, None] * points(4)
    flow = FlowLikelihood(dequantization="none", divergence="gaussian", num_probes=2, **TIGHT)
    whole = flow(OfWidth(VP()), x, cond=widths, noise=NoiseStreams(0, range(4)))
    alone = [flow(OfWidth(VP()), x[[i]], cond=widths[[i]], noise=NoiseStreams(0, [i])) for i in range(4)]
    # one leaves before another that stands behind it, which moves up
    assert alone[1].nfe < alone[2].nfe
    probe_nats = torch.cat([terms.probe_nats for terms in alone])
    torch.testing.assert_close(whole.probe_nats, probe_nats, rtol=0, atol=1e-9)
    assert float((whole.probe_nats[:, 0] - whole.probe_nats[:, 1]).abs().min()) > 1e-4


@pytest.mark.parametrize(("divergence", "spread"), [("gaussian", 2 / 3), ("rademacher", 0.0)])
def test_probes_are_what_they_are_called(divergence, spread):
    """Of a multiple of the identity, v . J v is |v|^2 / D of its trace: 1 by signs, chi^2_D / D by normal numbers."""
    sde, dims, images = VP(), 3, 1000
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, dims), covs=0.25 * torch.eye(dims)[None])
    x = torch.zeros(images, dims, dtype=torch.float64)
    flow = FlowLikelihood(dequantization="none", divergence=divergence, rtol=1e-4, atol=1e-4)
    volume = flow(model, x, noise=NoiseStreams(0, range(images))).diffusion
    first, last = noise_ratio(sde, sde.t_min), noise_ratio(sde, sde.t_max)
    log_alpha = dims * math.log(float(sde.alpha(one(sde.t_max))))
    exact = -0.5 * dims * math.log((0.25 + last**2) / (0.25 + first**2))
    share = ((volume + log_alpha) / exact).numpy()
    assert abs(share.mean() - 1) < 4 * math.sqrt(spread / images) + 1e-3
    # the variance of a sample variance of chi^2_3 / 3 is (mu_4 - spread^2) / n, mu_4 = (12 3^2 + 48 3) / 3^4
    assert abs(share.var() - spread) < 4 * math.sqrt((252 / 81 - 4 / 9) / images) * (spread > 0) + 1e-5


def test_a_steps_error_is_that_of_the_worst_probe():
    ends = points_of(VP(), torch.tensor([0.01, 1.0]))
    equation = FlowEquation(OfWidth(VP()), None, *ends, dtype=torch.float64, counter=CallCounter(), max_nfe=None)
    flow = LogDensityFlow(DivergenceSlope(equation, torch.Size([2]), None), rtol=1e-9, atol=1e-5)
    flow.score = torch.zeros(1, 2, dtype=torch.float64)
    zero = torch.zeros(1, 4, dtype=torch.float64)
    for difference in ([0.0, 0.0, 3e-5, 0.0], [0.0, 0.0, 0.0, -3e-5]):
        error = flow.step_error(zero, zero, torch.tensor([difference], dtype=torch.float64))
        assert float(error) == pytest.approx(3.0)


def test_the_prior_is_compared_where_the_chain_begins():
    model = GaussianMixtureScoreModel(CosineVP(), means=torch.zeros(1, 2), covs=0.25 * torch.eye(2)[None])
    x0 = torch.tensor([[1.0, -1.0], [0.0, 1.0]], dtype=torch.float64)
    grid = torch.tensor([0.5, 0.2, 0.1])
    for bound, begin in (
        (VariationalBound(num_levels=3, grid=grid), 0.5),
        (VariationalBound(num_levels=3, num_steps=3), 0.999),
        (ContinuousBound(num_levels=3), 0.999),
    ):
        prior = bound(model, x0, noise=NoiseStreams(0, range(2))).prior
        alpha_bar = float(model.sde.alpha(one(begin))) ** 2
        expected = 0.5 * (alpha_bar * (x0**2 - 1) - math.log1p(-alpha_bar)).sum(1)
        torch.testing.assert_close(prior, expected, rtol=1e-8, atol=1e-15)
        assert not torch.allclose(prior, prior_kl(x0, model.sde, 1.0), rtol=1e-3, atol=0)
