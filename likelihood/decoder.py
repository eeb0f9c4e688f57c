"""The discretized Gaussian decoder of L_0 (Ho et al. 2020, Eq. 13)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import whole_number


def levels_of(x: Float[Tensor, "*shape"], num_levels: int) -> Float[Tensor, "*shape"]:
    """The grey level k of data x = 2 k / (num_levels - 1) - 1, checked.

    Args:
        x: Data on the lattice in [-1, 1].
        num_levels: Number of levels, at least 2.

    Returns:
        k as float64.

    Raises:
        ValueError: If num_levels is below 2 or not whole, or x is off the lattice by more than 1 % of a bin, or NaN.
    """
    whole_number("num_levels", num_levels, least=2, fix="pass the data's number of grey levels")
    place = 0.5 * (x.double() + 1) * (num_levels - 1)
    level = place.round()
    # what must hold, rather than what must not: NaN fails every comparison
    on_lattice = ((place - level).abs() <= 0.01) & (level >= 0) & (level <= num_levels - 1)
    if not bool(on_lattice.all()):
        raise ValueError(
            f"x must lie on the {num_levels} levels from -1 to 1, got {float(x.min()):.6g} to {float(x.max()):.6g}; "
            "pass x = 2 k / (num_levels - 1) - 1, and the data's own num_levels"
        )
    return level


def _log_normal_interval(low: Tensor, high: Tensor) -> Tensor:
    """log(Phi(high) - Phi(low)) for low < high, exact in both tails."""
    # both ends in the lower tail, where log_ndtr keeps its digits: Phi(b) - Phi(a) = Phi(-a) - Phi(-b)
    mirror = low + high > 0
    low, high = torch.where(mirror, -high, low), torch.where(mirror, -low, high)
    log_high = torch.special.log_ndtr(high)
    return log_high + torch.log(-torch.expm1(torch.special.log_ndtr(low) - log_high))


def discretized_gaussian_log_prob(
    x: Float[Tensor, "*shape"], mean: Float[Tensor, "*shape"], log_std: Float[Tensor, "*_"], *, num_levels: int
) -> Float[Tensor, "*shape"]:
    """log of the mass that N(mean, std^2) has on the bin of x:

        log( Phi((x + h - mean) / std) - Phi((x - h - mean) / std) ),   h = 1 / (num_levels - 1),

    with the bins of the first and last level open to -inf and +inf, so that all bins sum to 1 (Ho et al. 2020, Eq. 13).

    Args:
        x: Data on the lattice of ``num_levels`` levels in [-1, 1].
        mean: Means, the shape of x.
        log_std: Log standard deviations, broadcastable to x.
        num_levels: Number of grey levels of the data, such as 256.

    Returns:
        Log probabilities in nats, one per dimension, float64.

    Raises:
        ValueError: If x is off the lattice.
    """
    level = levels_of(x, num_levels)
    inverse_std = torch.exp(-log_std.double())
    # x -+ h from integers: neighbours share their edge to the last digit, and an edge near 0 keeps its digits
    low = ((2 * level - num_levels) / (num_levels - 1) - mean.double()) * inverse_std
    high = ((2 * level + 2 - num_levels) / (num_levels - 1) - mean.double()) * inverse_std
    inside = _log_normal_interval(low, high)
    edges = torch.where(level == 0, torch.special.log_ndtr(high), torch.special.log_ndtr(-low))
    return torch.where((level == 0) | (level == num_levels - 1), edges, inside)


def level_entropy(noise_ratio: float, num_levels: int) -> float:
    """H(k | l_k + r z) of K equally likely levels l_k = 2 k / (K - 1) - 1, z standard normal, in bits:

        log2 K - h(l_k + r z) + log2(r sqrt(2 pi e)),   h the differential entropy.

    No decoder of x_t at sigma / alpha = r has a smaller L_0 a dimension where pixels are independent and their levels
    equally likely: each pixel is decoded by itself, so that this much is lost of what its neighbours say.

    Args:
        noise_ratio: r = sigma / alpha at the decoder's time, above 0.
        num_levels: K, at least 2.

    Returns:
        From 0 (no noise) to log2 K (nothing but noise).
    """
    r, spacing = noise_ratio, 2 / (num_levels - 1)
    if r < spacing / 12:
        # below 1e-7 bits, and more points than it is worth
        return 0.0
    y = torch.arange(-1 - 9 * r, 1 + 9 * r, r / 4, dtype=torch.float64)
    level = torch.linspace(-1, 1, num_levels, dtype=torch.float64)
    log_normal = -0.5 * ((y[:, None] - level) / r).square() - math.log(r * math.sqrt(2 * math.pi) * num_levels)
    log_density = log_normal.logsumexp(1)
    entropy = -float(torch.trapezoid(log_density.exp() * log_density, y))
    nats = math.log(num_levels) - entropy + math.log(r) + 0.5 * math.log(2 * math.pi * math.e)
    return max(nats, 0.0) / math.log(2)
