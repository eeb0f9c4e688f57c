"""The mixture in the plane: moments, and the distance to the true density, by Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from models import ScoreModel
from samplers import SampleResult
from sde_lib import SDE, NoiseStreams, derive_seed

from .checked import SIGMAS, Cell, Checked, times_of
from .entries import Entry
from .oracles import (
    MIXTURE,
    PlaneOracle,
    central_moments,
    network_model,
    parameterizations_of,
    points_in_plane,
    to_unit_square,
)
from .recursion import noisy_points

STREAMS = 4
# the density is compared on CELLS_A_SIDE^2 cells that are equally probable under the mixture
CELLS_A_SIDE = 8
# points of which each parameterization must make the same as the closed form
SAME_POINTS = 200
# how far apart two runs may end that differ in rounding alone
ROUNDING = 1e-9
# A Langevin step by norms is proportional to 1 / |eps|^2, and eps = -sigma score is about as small as sigma at the last
# time. Found as (x - alpha x0) / sigma it is off by rounding / sigma, which is a share of rounding / sigma^2.
NORMS_ROUNDING = 2.3e-16
_MEAN, _COV, _THIRD = central_moments(MIXTURE)


def moment_errors(points: Float[Tensor, "points 2"]) -> Float[Tensor, "points 7"]:
    """Each point's share of the errors of mean, covariance and third moments: their means are these errors."""
    x, y = (points.double() - _MEAN).unbind(-1)
    columns = [x, y, x * x - _COV[0, 0], x * y - _COV[0, 1], y * y - _COV[1, 1], x**3 - _THIRD[0], y**3 - _THIRD[1]]
    return torch.stack(columns, -1)


def density_errors(points: Float[Tensor, "points 2"]) -> Float[Tensor, " cells"]:
    """Relative errors of the cells' probabilities, over the square root of the number of cells.

    The Euclidean norm of it is what is called distance: the root of chi^2 / N, and so of Pearson's divergence of the
    two densities read on the cells.
    """
    cell = (to_unit_square(points) * CELLS_A_SIDE).long().clamp(0, CELLS_A_SIDE - 1)
    cells = CELLS_A_SIDE**2
    counts = torch.bincount(cell[:, 0] * CELLS_A_SIDE + cell[:, 1], minlength=cells).double()
    return (counts / len(points) * cells - 1) / math.sqrt(cells)


def exact_distance_quantile(num_points: int) -> float:
    """The distance that exact draws exceed no more often than a normal variable exceeds ``SIGMAS``: chi^2 / N."""
    return math.sqrt(stats.chi2.isf(stats.norm.sf(SIGMAS), CELLS_A_SIDE**2 - 1) / num_points)


def prove_mixture(
    sde: SDE,
    entry: Entry,
    *,
    parameterizations: Sequence[str] | None = None,
    num_points: int = 100_000,
    seed: int = 0,
) -> Cell:
    """Run one sampler on one SDE, from the exact p(x_T), at two refinements.

    Args:
        sde: The SDE.
        entry: The sampler.
        parameterizations: Some of ``parameterizations_of(sde)``; None is all.
        num_points: Draws.
        seed: Seed of x_T and the noise; both refinements start at the same x_T.
    """
    model = PlaneOracle(sde, MIXTURE)

    def run(asked: ScoreModel, refinement: int, seeds: tuple[int, int], streams: int, points: int) -> SampleResult:
        sampler = entry.build(sde, refinement)
        start, noise = (NoiseStreams(derive_seed(seed, k), range(streams)) for k in seeds)
        return sampler.sample(asked, model.draw_noisy(times_of(sampler, sde)[:1], points, start), noise=noise)

    coarse, fine = (run(model, k, (0, 1 + k), STREAMS, num_points // STREAMS) for k in (0, 1))
    last = noisy_points(sde, times_of(entry.build(sde, 1), sde))[-1]
    checks = compare(
        *(points_in_plane(result.x0) for result in (coarse, fine)),
        allowance=entry.allowance(sde),
        noise_ratio=last.noise_ratio,
    )
    # a parameterization's samples beside the closed form's, from the same x_T by the same noise
    closed_form = run(model, 1, (3, 4), 1, SAME_POINTS).x0
    allowed = ROUNDING + (NORMS_ROUNDING / last.sigma**2 if entry.by_norms else 0.0)
    same = {}
    for name in parameterizations_of(sde) if parameterizations is None else parameterizations:
        found = run(network_model(model, name), 1, (3, 4), 1, SAME_POINTS).x0
        same[name] = Checked(float((found - closed_form).abs().max()), allowed)
    return Cell(fine.nfe, checks, same)


def compare(coarse: Tensor, fine: Tensor, *, allowance: float, noise_ratio: float) -> dict[str, Checked | None]:
    """Hold the finer run to the bounds.

    With b the bias of the finer run, e its error seen and d the coarser run's error minus e, all but b with noise:
    |e| <= |b| + |noise of e|, and |b| <= allowance (|d| + |noise of d|) by the order; each noise is given ``SIGMAS``
    standard errors. Every sampler's output is denoised last, which takes about r^2 from the covariance.

    Args:
        coarse: Points of the coarser run, [N, 2].
        fine: Points of the finer run, [N, 2]; point k of both starts at the same x_T.
        allowance: See ``Entry.allowance``.
        noise_ratio: r = sigma / alpha before the last denoising.

    Returns:
        The errors of the worst coordinate's mean, entry of the covariance and coordinate's third central moment, and
        the distance, see ``density_errors``.
    """
    num_points = len(fine)
    fine_errors, change = moment_errors(fine), moment_errors(coarse) - moment_errors(fine)
    root = math.sqrt(num_points)
    error = fine_errors.mean(0)
    noise = SIGMAS * (fine_errors.std(0) + allowance * change.std(0)) / root
    bounds = allowance * change.mean(0).abs() + noise + 3 * noise_ratio**2
    checked = [Checked(e, b) for e, b in zip(error.tolist(), bounds.tolist(), strict=True)]
    groups = {"mean": checked[:2], "cov": checked[2:5], "third": checked[5:]}
    worst = {name: max(group, key=lambda c: abs(c.value) / c.bound) for name, group in groups.items()}
    densities = [density_errors(points) for points in (coarse, fine)]
    # Of d's norm only its noise along b can take away, of variance 2 / N at most. Shrinking the narrowest of the
    # components by r^2 is a divergence of (r^2 / variance)^2 at most.
    change_seen = float((densities[0] - densities[1]).norm()) + SIGMAS * math.sqrt(2) / root
    narrowest = min((xx + yy) / 2 - math.hypot((xx - yy) / 2, xy) for xx, xy, yy in (c.cov for c in MIXTURE))
    bound = allowance * change_seen + exact_distance_quantile(num_points) + noise_ratio**2 / narrowest
    return {**worst, "distance": Checked(float(densities[1].norm()), bound)}
