"""The kernel distance of two sets of features (KID), without bias, with its standard error."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from .quality import Estimate, checked_pair

_CHUNK = 2**22  # values of the kernel at once: 32 MiB


def kernel_distance(features_a: Float[Tensor, "n dim"], features_b: Float[Tensor, "m dim"]) -> Estimate:
    """Squared maximum mean discrepancy of the laws of two sets, by a polynomial kernel: the KID.

    E k(a, a') + E k(b, b') - 2 E k(a, b) with k(x, y) = (<x, y> / D + 1)^3 (Binkowski et al. 2018, Section 4). The
    means leave out pairs of a point with itself (Gretton et al. 2012, Lemma 6), so that unlike a Frechet distance the
    estimate has no bias: it compares at any sample sizes, and is below zero as often as above for one law.

    Each point's share is known, so that the jackknife leaves out one point at a time without computing anything anew.

    Args:
        features_a: One row a sample, [N, D], N at least 3.
        features_b: Likewise, [M, D], M at least 2; what others are compared with.

    Returns:
        The distance, and its standard error over draws of the first set, the second held fixed. Over draws of both it
        is the root of the sum of the squares of this one and that of the sets exchanged.

    Raises:
        ValueError: If the sets are no such matrices, or a value is not finite.
    """
    a, b = checked_pair(features_a, features_b)
    n, m = len(a), len(b)
    if n < 3:
        raise ValueError(f"the first set must have 3 samples at least for a standard error, got {n}; draw more")
    own, cross = _row_sums(a, a) - _kernel(a.square().sum(1), a.shape[1]), _row_sums(a, b) / m
    b_own = _row_sums(b, b) - _kernel(b.square().sum(1), b.shape[1])
    value = own.sum() / (n * (n - 1)) + b_own.sum() / (m * (m - 1)) - 2 * cross.mean()
    # without point i; the term of b is the same in all
    left_out = (own.sum() - 2 * own) / ((n - 1) * (n - 2)) - 2 * (cross.sum() - cross) / (n - 1)
    return Estimate(float(value), math.sqrt((n - 1) * float(left_out.var(correction=0))))


def _kernel(products: Tensor, dim: int) -> Tensor:
    return (products / dim + 1) ** 3


def _row_sums(a: Float[Tensor, "n dim"], b: Float[Tensor, "m dim"]) -> Float[Tensor, " n"]:
    """sum_j k(a_i, b_j)."""
    parts = a.split(max(1, _CHUNK // len(b)))
    return torch.cat([_kernel(part @ b.T, a.shape[1]).sum(1) for part in parts])
