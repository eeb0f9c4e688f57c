"""Precision, recall, density and coverage of samples, by nearest neighbours among features.

Precision and density say how much of what is drawn looks like data; recall and coverage, how much of the data is drawn.
All compare at one number of samples and one reference alone. What they are for samples as good as data is told by
held-out data in groups of the same size, and for density and coverage by ``coverage_of_one_law`` too.

Precision and density are means over samples, which are independent given the reference: ``mean_and_stderr`` is their
standard error. Recall and coverage are no such means, since every sample counts only for what the others leave: their
standard error is that of ``block_jackknife``, in groups of one size that of ``grouped_estimate``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from likelihood import mean_and_stderr

from .quality import Estimate, checked_pair, checked_points

_CHUNK = 2**22  # distances at once: 32 MiB


class Neighbourhoods:
    """Balls about the points of a set, each as large as the distance to its k-th nearest other point.

    Together they stand for the support of the law that the points were drawn from (Kynkaanniemi et al. 2019, Eq. 1). A
    point on the surface is inside, as there.

    Args:
        points: One row a point, [M, D].
        num_neighbours: k, in 1 .. M - 1. Kynkaanniemi et al. take 3, Naeem et al. 5.

    Attributes:
        points: As given, float64.
        num_neighbours: As given.
        radii: The balls' radii, float64 [M].

    Raises:
        ValueError: If the points are no such matrix, not finite, or not more than k.
    """

    def __init__(self, points: Float[Tensor, "m dim"], *, num_neighbours: int = 5) -> None:
        self.points, self.num_neighbours = checked_points("reference", points), num_neighbours
        if not 1 <= num_neighbours < len(points):
            raise ValueError(
                f"num_neighbours must be 1 .. {len(points) - 1}, one less than the points, got {num_neighbours}; "
                "change it, or give more points"
            )
        # the nearest of all is the point itself
        nearest = [gaps.kthvalue(num_neighbours + 1, dim=1).values for gaps in self._distances(self.points)]
        self.radii = torch.cat(nearest)

    def counts(self, others: Float[Tensor, "n dim"]) -> Int64[Tensor, " n"]:
        """The number of balls that each of other points, [N, D], is in."""
        others, _ = checked_pair(others, self.points)
        return torch.cat([(gaps <= self.radii).sum(1) for gaps in self._distances(others)])

    def reached(self, others: Float[Tensor, "n dim"]) -> Bool[Tensor, " m"]:
        """The balls that one or more of other points, [N, D], are in."""
        others, _ = checked_pair(others, self.points)
        found = torch.zeros(len(self.points), dtype=torch.bool)
        for gaps in self._distances(others):
            found |= (gaps <= self.radii).any(0)
        return found

    def _distances(self, others: Tensor) -> Iterator[Tensor]:
        """Distances of others from all points, [n, M], some others at a time."""
        # products of the points would lose the digits of small distances, and of zero
        exact = "donot_use_mm_for_euclid_dist"
        for part in others.split(max(1, _CHUNK // len(self.points))):
            yield torch.cdist(part, self.points, compute_mode=exact)


def precision(features: Float[Tensor, "n dim"], reference: Neighbourhoods) -> Estimate:
    """Share of the samples, [N, D], that are in a ball of the reference (Kynkaanniemi et al. 2019, Eq. 2)."""
    return Estimate(*mean_and_stderr((reference.counts(features) > 0).double()))


def density(features: Float[Tensor, "n dim"], reference: Neighbourhoods) -> Estimate:
    """Mean number of the reference's balls that a sample is in, over k (Naeem et al. 2020, Section 3).

    1 is its expectation for samples of the reference's own law, whatever that is; more means that samples crowd where
    data is dense. Unlike precision it is not raised by balls about outliers.

    Args:
        features: One row a sample, [N, D].
        reference: The balls.
    """
    mean, stderr = mean_and_stderr(reference.counts(features).double())
    return Estimate(mean / reference.num_neighbours, stderr / reference.num_neighbours)


def recall(features: Float[Tensor, "n dim"], reference: Neighbourhoods) -> float:
    """Share of the reference's points that are in a ball of the samples, [N, D] (Kynkaanniemi et al. 2019, Eq. 2)."""
    balls = Neighbourhoods(features, num_neighbours=reference.num_neighbours)
    return float((balls.counts(reference.points) > 0).double().mean())


def coverage(features: Float[Tensor, "n dim"], reference: Neighbourhoods) -> float:
    """Share of the reference's balls with a sample, [N, D], in them (Naeem et al. 2020, Section 3).

    See ``coverage_of_one_law`` for its expectation. Unlike recall it has its balls about data, so that samples far from
    all data do not raise it.

    Args:
        features: One row a sample, [N, D].
        reference: The balls.
    """
    return float(reference.reached(features).double().mean())


def coverage_of_one_law(num_samples: int, num_reference: int, *, num_neighbours: int = 5) -> float:
    """Expected coverage of samples of the reference's own law, any law without atoms.

    1 - (M - 1) ... (M - k) / ((N + M - 1) ... (N + M - k)), one less the probability that the k points nearest to a
    point of the reference, out of all others, are of the reference (Naeem et al. 2020, Lemma 2).

    Args:
        num_samples: N.
        num_reference: M.
        num_neighbours: k.
    """
    others = num_reference - 1
    return 1 - math.comb(others, num_neighbours) / math.comb(num_samples + others, num_neighbours)
