"""The bound of a latent diffusion: exact where encoder and prior are, off by KL(q || posterior) elsewhere."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import integrate
from torch import Tensor, nn

from experiment.warnings.first_noise import lost_to_first_noise
from likelihood import ContinuousBound, FlowLikelihood, LatentBound, prior_kl
from models import FirstStage, GaussianLatent, GaussianMixtureScoreModel, LatentDiffusion
from sde_lib import SDE, VE, VP, CosineVP, NoiseStreams, SubVP, Tabulated, make_ode_solver

SDES = {"vp": VP(), "subvp": SubVP(), "ve": VE(sigma_max=50.0), "ddpm": Tabulated.ddpm(), "cosine": CosineVP()}


class Line(nn.Module):
    """One latent z of one number x: q(z | x) = N(u x, r^2), p(x | z) = N(a z + b, s^2)."""

    pixels, in_channels, latent_shape = "gaussian", 1, (1,)

    def __init__(self, u: float, r: float, a: float, b: float, s: float) -> None:
        super().__init__()
        self.u, self.r, self.a, self.b, self.s = u, r, a, b, s

    def encode(self, x: Tensor) -> GaussianLatent:
        return GaussianLatent(self.u * x, torch.full_like(x, math.log(self.r)))

    def decode(self, z: Tensor) -> Tensor:
        mean = self.a * z + self.b
        return torch.cat((mean, torch.full_like(mean, math.log(self.s))), 1)


class Given(NoiseStreams):
    """Streams whose first draw is given: a node of a quadrature for each row."""

    def __init__(self, first: Tensor) -> None:
        super().__init__(0, range(len(first)))
        self.first: Tensor | None = first

    def normal_like(self, x: Tensor) -> Tensor:
        if self.first is None:
            return super().normal_like(x)
        first, self.first = self.first, None
        return first


def _mixture(sde: SDE, means: list[list[float]], variance: float, weights: list[float]) -> GaussianMixtureScoreModel:
    places = torch.tensor(means, dtype=torch.float64)
    covs = (variance * torch.eye(places.shape[1], dtype=torch.float64)).expand(len(places), -1, -1)
    return GaussianMixtureScoreModel(sde, means=places, covs=covs, weights=weights)


def _flow() -> FlowLikelihood:
    solver = make_ode_solver("rk4", num_steps=100, grid="log_snr")
    return FlowLikelihood(num_levels=None, dequantization="none", divergence="exact", solver=solver)


def test_the_gap_of_a_mixture_prior_is_what_quadrature_gives():
    weights, means, std = [0.3, 0.7], [-1.5, 1.0], 0.4
    line = Line(u=0.6, r=0.5, a=1.3, b=0.2, s=0.7)
    # the prior's own coordinates are those of z less a mean, over a standard deviation
    shift, scale = 0.3, 1.7
    prior = _mixture(CosineVP(), [[(m - shift) / scale] for m in means], (std / scale) ** 2, weights)
    first_stage = FirstStage(line, VP())
    model = LatentDiffusion(first_stage, prior, mean=torch.tensor([shift]).double(), std=torch.tensor([scale]).double())
    nodes, shares = np.polynomial.hermite_e.hermegauss(60)
    shares = torch.from_numpy(shares / shares.sum())
    places = (-1.0, 0.8, 2.5)
    rows = torch.tensor(places, dtype=torch.float64).repeat_interleave(60)[:, None]
    eps = torch.from_numpy(nodes).repeat(3)[:, None]
    bound = LatentBound(_flow(), num_levels=None)(model, rows, noise=Given(eps)).total.view(3, 60) @ shares

    def normal(y: float, mean: float, sd: float) -> float:
        return -0.5 * ((y - mean) / sd) ** 2 - math.log(sd * math.sqrt(2 * math.pi))

    def log_mixture(y: float, scale: float, shift: float, sd: float) -> float:
        parts = [w * math.exp(normal(y, scale * m + shift, sd)) for w, m in zip(weights, means, strict=True)]
        return math.log(sum(parts))

    for x, found in zip(places, bound.tolist(), strict=True):
        density = log_mixture(x, line.a, line.b, math.hypot(line.a * std, line.s))

        def gap(z: float, x: float = x, density: float = density) -> float:
            """q log(q / posterior) at z."""
            log_q = normal(z, line.u * x, line.r)
            log_posterior = log_mixture(z, 1.0, 0.0, std) + normal(x, line.a * z + line.b, line.s) - density
            return math.exp(log_q) * (log_q - log_posterior)

        centre = line.u * x
        truth = integrate.quad(gap, centre - 9 * line.r, centre + 9 * line.r, epsabs=1e-9, limit=200)[0]
        # the flow ends with the noise of t_min, begins from N(0, I), and is solved in 100 steps
        assert found + density == pytest.approx(truth, abs=1e-3)
        assert truth > 0.01


def _rate_integral(sde: SDE, c: float, mu: Tensor, log_snr_end: float) -> tuple[float, float]:
    """L_T + 1/2 int |eps err|^2 d lambda of mu [1, D] from a log-SNR on, of the prior N(0, c); and the r there."""
    num_dims = mu.shape[1]
    prior = _mixture(sde, [[0.0] * num_dims], c, [1.0])
    t0 = float(sde.time_from_log_snr(torch.tensor([log_snr_end], dtype=torch.float64)))
    bound = ContinuousBound(num_levels=None, t_end=t0)
    ends = bound.ends(sde)
    high, low = sde.log_snr(ends).tolist()
    # the error is quadratic in eps: its mean is that over +-sqrt(D) in each direction
    points = math.sqrt(num_dims) * torch.eye(num_dims, dtype=torch.float64)
    points = torch.cat((points, -points))
    nodes, shares = np.polynomial.legendre.leggauss(120)
    total = torch.zeros(1, dtype=torch.float64)
    for node, share in zip(nodes, shares, strict=True):
        log_snr = torch.full((len(points),), low + (high - low) * 0.5 * (node + 1), dtype=torch.float64)
        rows: Any = bound._integrand(prior, mu.expand(len(points), -1), log_snr, None, Given(points))
        total += 0.5 * (high - low) * share * rows.mean()
    alpha, sigma = (float(one) for one in sde.alpha_sigma(ends[1:]))
    marginal = alpha**2 * c + sigma**2
    # L_T to the marginal at t_max, where the bound's own is to N(0, prior_std^2)
    last = 0.5 * float(
        ((alpha * mu) ** 2 + sigma**2).sum() / marginal - num_dims - num_dims * math.log(sigma**2 / marginal)
    )
    assert last == pytest.approx(float(prior_kl(mu, sde, float(ends[1]))), abs=0.02)
    return float(total) + last, math.exp(-0.5 * high)


def _kl(mean: float, variance: float, of: float) -> float:
    """KL(N(mean, variance) || N(0, of))."""
    return 0.5 * ((mean**2 + variance) / of - 1 - math.log(variance / of))


@pytest.mark.parametrize("name", SDES)
def test_the_rate_integral_is_the_kl(name: str):
    """Of a Gaussian prior N(0, c), L_T + 1/2 int |eps err|^2 d lambda from t0 on is KL(N(mu, r^2) || N(0, c + r^2))."""
    c, places = 0.6, (0.9, -0.4, 1.7)
    found, r = _rate_integral(SDES[name], c, torch.tensor([places], dtype=torch.float64), 4.0)
    assert found == pytest.approx(sum(_kl(mu, r**2, c + r**2) for mu in places), rel=1e-10)


@pytest.mark.parametrize(("m", "s", "c"), [(0.8, 0.5, 0.6), (0.8, 0.05, 0.6), (0.0, 0.05, 0.05**2)])
def test_what_the_first_noise_costs_is_at_most_what_is_said(m: float, s: float, c: float):
    """The rate of q = N(m, s^2) by the bound that ends at r, less KL(q || p), against 1/2 log(1 + r^2 / s^2)."""
    sde = VP()
    # both are quadratic in z, so that two places give the mean over q
    found = [_rate_integral(sde, c, torch.tensor([[z]], dtype=torch.float64), 4.0) for z in (m - s, m + s)]
    r = found[0][1]
    # L_0 of a density less the entropy of q
    rate = sum(one for one, _ in found) / 2 + math.log(r / s)
    lost = rate - _kl(m, s**2, c)
    most = float(lost_to_first_noise(r, torch.tensor([[s]])))
    assert most == pytest.approx(0.5 * math.log(1 + (r / s) ** 2), rel=1e-6)
    # all of it but what KL falls by under the same noise
    assert lost == pytest.approx(most - (_kl(m, s**2, c) - _kl(m, s**2 + r**2, c + r**2)), abs=1e-6)
    assert 0 < lost <= most + 1e-6
    # where p is q all of it is lost, little where p is wide beside r
    assert lost == pytest.approx(most, rel=1e-5) if c == s**2 else lost < 0.5 * most


def test_the_bound_on_a_density_is_tight_for_an_exact_model():
    means, weights, variance = [[-1.0, 0.5], [0.8, -0.3]], [0.4, 0.6], 0.25
    prior = _mixture(VP(), means, variance, weights)
    torch.manual_seed(0)
    z = torch.tensor([[-0.9, 0.2], [1.0, 0.0]], dtype=torch.float64).repeat(400, 1)
    terms = ContinuousBound(num_levels=None, steps_per_image=40)(prior, z, noise=NoiseStreams(0, range(800)))
    nats = terms.total.view(400, 2)
    stderr = nats.std(0) / math.sqrt(400)
    parts = [
        math.log(w) - (z[:2] - torch.tensor(m).double()).square().sum(1) / (2 * variance)
        for w, m in zip(weights, means, strict=True)
    ]
    density = torch.stack(parts).logsumexp(0) - math.log(2 * math.pi * variance)
    # of a mixture the chain's posterior is no Gaussian, yet its bound is that of the exact marginals
    assert bool(((nats.mean(0) + density).abs() < 4 * stderr).all()), (nats.mean(0), -density, stderr)
    assert float(stderr.max()) < 0.2


def test_estimators_of_other_levels_than_the_latents_are_refused():
    model = LatentDiffusion(FirstStage(Line(0.6, 0.5, 1.3, 0.2, 0.7), VP()), _mixture(VP(), [[0.0]], 1.0, [1.0]))
    bound = LatentBound(ContinuousBound(num_levels=17), num_levels=None)
    with pytest.raises(ValueError, match="num_levels 17, got latents of None"):
        bound(model, torch.zeros(1, 1))
