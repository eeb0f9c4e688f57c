"""Models, distributions and quadratures that the likelihood tests share; the quadratures are numpy and scipy alone."""

from functools import lru_cache

import numpy as np
import torch
from scipy.special import log_ndtr

from models import DiscreteScoreModel, Prediction, ScoreModel
from sde_lib import VE, VP, CosineVP, SubVP, Tabulated, ddpm_betas

SDES = {
    "vp": VP(),
    "cosine": CosineVP(),
    "subvp": SubVP(),
    "ve": VE(sigma_max=20.0),
    "ddpm": Tabulated.ddpm(num_steps=50, beta_start=20 * 1e-4, beta_end=20 * 0.02),
    "ncsn": Tabulated.ncsn(num_steps=50, sigma_min=0.05, sigma_max=20.0),
}
FRACTION = {"small": 0.0, "large": 1.0, "learned": 0.3}


def rescaled_ddpm(num_steps):
    """Ho et al.'s betas, rescaled so that a table of any length destroys as much; below 20 rows they need a cap."""
    return Tabulated.from_betas((ddpm_betas(num_steps) * 1000 / num_steps).clamp(max=0.99))


def random_pmf(num_levels, seed=0):
    """Softmax of standard normals."""
    logits = np.random.default_rng(seed).standard_normal(num_levels)
    return np.exp(logits) / np.exp(logits).sum()


def lattice(num_levels):
    return 2 * np.arange(num_levels) / (num_levels - 1) - 1


class Pixels(ScoreModel):
    """The exact denoiser of [B, D] independent pixels of one distribution, by the one-pixel oracle."""

    def __init__(self, sde, pmf, *, fraction=0.3):
        super().__init__(sde)
        points = torch.from_numpy(lattice(len(pmf)))[:, None]
        self.pixel = DiscreteScoreModel(sde, points=points, probs=pmf.tolist(), variance_fraction=fraction)

    def forward(self, x_t, t, *, cond=None):
        raw = self.pixel(x_t.reshape(-1, 1), t.repeat_interleave(x_t[0].numel()))
        x0, eps, fraction = (v.reshape(x_t.shape) for v in (raw.x0, raw.eps, raw.variance_fraction))
        return Prediction(x0=x0, eps=eps, sigma=self.sde.sigma(t), variance_fraction=fraction)


def every_level(num_levels, copies, dims):
    """Images of one level each, [num_levels * copies, dims], level by level: sampling x0 is left to its weights."""
    x0 = torch.from_numpy(lattice(num_levels)).repeat_interleave(copies)
    return x0[:, None].expand(-1, dims).contiguous()


def weighted(values, pmf, dims):
    """sum_k p_k E[values | level k] per pixel, from ``every_level`` batches, and its standard error."""
    values = values.numpy().reshape(len(pmf), -1) / dims
    return pmf @ values.mean(1), np.sqrt(pmf**2 @ values.var(1, ddof=1) / values.shape[1])


EPS = np.linspace(-9, 9, 601)
EPS_WEIGHT = np.exp(-0.5 * EPS**2) / np.exp(-0.5 * EPS**2).sum()


@lru_cache(maxsize=2048)
def posterior_means(alpha, sigma, pmf):
    """E[x0 | x_t] of one pixel for every level and every eps, [K, len(EPS)]."""
    points = lattice(len(pmf))
    x_t = alpha * points[:, None] + sigma * EPS
    log_weight = np.log(pmf) - 0.5 * ((x_t[..., None] - alpha * points) / sigma) ** 2
    weight = np.exp(log_weight - log_weight.max(-1, keepdims=True))
    return (weight @ points) / weight.sum(-1)


def gaussian_kl(mean1, var1, mean2, var2):
    return 0.5 * (np.log(var2 / var1) + (var1 + (mean1 - mean2) ** 2) / var2 - 1)


def reverse_vars(alpha_s, sigma_s, alpha_t, sigma_t):
    large = sigma_t**2 - (alpha_t / alpha_s) ** 2 * sigma_s**2
    return large * sigma_s**2 / sigma_t**2, large


def mix(variance, small, large):
    fraction = FRACTION[variance]
    return large**fraction * small ** (1 - fraction)


def quadrature_terms(alpha, sigma, pmf, variance):
    """L_0, L_1, ... of one pixel with the noise levels alpha and sigma at rising times, in numpy.

    Expectations over eps are trapezoidal sums. As functions of eps the integrands turn within sigma / gap, gap being
    that of the levels, and do so at gap / (2 sigma): where that is below 9, their width is above one spacing.

    Returns:
        Mean and variance of every term over eps, each [n, K].
    """
    points = lattice(len(pmf))[:, None]
    large = sigma[0] ** 2
    small = reverse_vars(alpha[0], sigma[0], alpha[1], sigma[1])[0] if len(alpha) > 1 else large
    # the published code decodes with the small variance where the chain has the large one
    std = np.sqrt(mix("small" if variance == "large" else variance, small, large))
    mean = posterior_means(alpha[0], sigma[0], tuple(pmf))
    half = 1 / (len(pmf) - 1)
    low = (np.where(points == -1, -np.inf, points - half) - mean) / std
    high = (np.where(points == 1, np.inf, points + half) - mean) / std
    mirror = low + high > 0
    low, high = np.where(mirror, -high, low), np.where(mirror, -low, high)
    terms = [-log_ndtr(high) - np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high)))]
    for i in range(len(alpha) - 1):
        small, large = reverse_vars(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        x0_weight = alpha[i] * large / sigma[i + 1] ** 2
        mean = x0_weight * posterior_means(alpha[i + 1], sigma[i + 1], tuple(pmf))
        terms.append(gaussian_kl(x0_weight * points, small, mean, mix(variance, small, large)))
    means = np.array([term @ EPS_WEIGHT for term in terms])
    # squared offsets, not a difference of squares: some terms do not vary at all
    return means, np.array([(term - m[:, None]) ** 2 @ EPS_WEIGHT for term, m in zip(terms, means, strict=True)])


def entropy(pmf):
    return -(pmf * np.log(pmf)).sum()


def terms_over_x_t(alpha, sigma, pmf):
    """``quadrature_terms`` for all three variances, by sums over x_t rather than eps: quick for many levels too.

    E[x0 | x_t] is a function of x_t alone, so that one grid of x_t serves every level. It turns within sigma / gap of a
    standard deviation; as it is analytic, trapezoidal sums a fifth of that apart are exact to rounding.

    Returns:
        For each variance, mean and variance of every term over eps, each [n, K].
    """
    pmf, points = np.asarray(pmf), lattice(len(pmf))
    gap, half = points[1] - points[0], 1 / (len(pmf) - 1)
    found = {variance: ([], []) for variance in FRACTION}

    def at(i):
        """E[x0 | x_t] on the grid, [G, 1], and every level's weights there, [G, K]."""
        spacing = sigma[i] * min(0.25, max(0.2 * sigma[i] / (alpha[i] * gap), 0.01))
        reach = alpha[i] + 9 * sigma[i]
        x_t = np.arange(-reach, reach + spacing, spacing)[:, None]
        log_density = -0.5 * ((x_t - alpha[i] * points) / sigma[i]) ** 2
        posterior = np.log(pmf) + log_density
        posterior = np.exp(posterior - posterior.max(1, keepdims=True))
        weight = np.exp(log_density)
        return (posterior @ points / posterior.sum(1))[:, None], weight / weight.sum(0)

    def collect(variance, term, weight):
        mean = (weight * term).sum(0)
        found[variance][0].append(mean)
        found[variance][1].append((weight * (term - mean) ** 2).sum(0))

    mean, weight = at(0)
    large = sigma[0] ** 2
    small = reverse_vars(alpha[0], sigma[0], alpha[1], sigma[1])[0] if len(alpha) > 1 else large
    for variance in FRACTION:
        # the published code decodes with the small variance where the chain has the large one
        std = np.sqrt(mix("small" if variance == "large" else variance, small, large))
        low = (np.where(points == -1, -np.inf, points - half) - mean) / std
        high = (np.where(points == 1, np.inf, points + half) - mean) / std
        mirror = low + high > 0
        low, high = np.where(mirror, -high, low), np.where(mirror, -low, high)
        collect(variance, -log_ndtr(high) - np.log1p(-np.exp(log_ndtr(low) - log_ndtr(high))), weight)
    for i in range(len(alpha) - 1):
        small, large = reverse_vars(alpha[i], sigma[i], alpha[i + 1], sigma[i + 1])
        mean, weight = at(i + 1)
        error_sq = (alpha[i] * large / sigma[i + 1] ** 2 * (points - mean)) ** 2
        for variance in FRACTION:
            var = mix(variance, small, large)
            collect(variance, 0.5 * (np.log(var / small) + (small + error_sq) / var - 1), weight)
    return {variance: (np.array(means), np.array(spread)) for variance, (means, spread) in found.items()}


def coverage(totals, truth, stderrs=None):
    """Share of repetitions [R, images] whose mean is within 1.96 standard errors of the truth."""
    if stderrs is None:
        stderrs = totals.std(1, ddof=1) / np.sqrt(totals.shape[1])
    return float((np.abs(totals.mean(1) - truth) < 1.96 * stderrs).mean())
