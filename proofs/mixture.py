"""The mixture in the plane: moments, and the distance to the true density, by Monte Carlo."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from scipy import stats
from torch import Tensor

from samplers import Sampler
from sde_lib import SDE, NoiseStreams, derive_seed

from .checked import SIGMAS, Checked, times_of
from .entries import Entry
from .oracles import MIXTURE, PARAMETERIZATIONS, PlaneOracle, central_moments, network_model, to_unit_square
from .recursion import last_noise_ratio, last_point

STREAMS = 4
# the density is compared on CELLS_A_SIDE^2 cells that are equally probable under the mixture
CELLS_A_SIDE = 8
# points of which each parameterization must make the same as the closed form
SAME_POINTS = 200
# A Langevin step by norms is proportional to 1 / |eps|^2, and eps = -sigma score is about as small as sigma at the last
# time. Found as (x - alpha x0) / sigma it is off by rounding / sigma, which is a share of rounding / sigma^2.
NORMS_ROUNDING = 2.3e-16
_MEAN, _COV, _THIRD = central_moments(MIXTURE)


@dataclass(frozen=True)
class MixtureCell:
    """One sampler on one SDE.

    Attributes:
        nfe: Network calls of the finer run.
        mean: The worst coordinate's error of the mean.
        cov: The worst entry's error of the covariance.
        third: The worst coordinate's error of the third central moment.
        distance: Root mean square of the relative errors of the cells' probabilities.
        same: For each parameterization, the largest difference of its samples from those of the closed form.
    """

    nfe: int
    mean: Checked
    cov: Checked
    third: Checked
    distance: Checked
    same: dict[str, Checked]

    @property
    def numbers(self) -> tuple[Checked, ...]:
        """All that is checked."""
        return self.mean, self.cov, self.third, self.distance, *self.same.values()

    @property
    def passed(self) -> bool:
        """True if all numbers are within their bounds."""
        return all(checked.passed for checked in self.numbers)


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
    parameterizations: Sequence[str] = PARAMETERIZATIONS,
    num_points: int = 100_000,
    seed: int = 0,
) -> MixtureCell:
    """Run one sampler on one SDE, from the exact p(x_T), at two refinements.

    Args:
        sde: The SDE.
        entry: The sampler.
        parameterizations: Some of ``PARAMETERIZATIONS``.
        num_points: Draws.
        seed: Seed of x_T and the noise; both refinements start at the same x_T.
    """
    model = PlaneOracle(sde, MIXTURE)
    outputs: list[Tensor] = []
    nfe, times = 0, torch.empty(0)
    for refinement in (0, 1):
        sampler = entry.build(sde, refinement)
        times = times_of(sampler, sde)
        x_T = _start(model, sampler, num_points // STREAMS, NoiseStreams(derive_seed(seed, 0), range(STREAMS)))
        result = sampler.sample(model, x_T, noise=NoiseStreams(derive_seed(seed, 1 + refinement), range(STREAMS)))
        outputs.append(result.x0.transpose(1, 2).reshape(-1, 2))
        nfe = result.nfe
    allowed = entry.repeats + (0.0 if entry.kind != "norms" else NORMS_ROUNDING / last_point(sde, times)[2] ** 2)
    same = differences(model, entry.build(sde, 1), parameterizations, allowed, seed)
    noise_ratio = last_noise_ratio(sde, times)
    return compare(*outputs, allowance=entry.allowance(sde), noise_ratio=noise_ratio, nfe=nfe, same=same)


def _start(model: PlaneOracle, sampler: Sampler, num_points: int, noise: NoiseStreams) -> Tensor:
    x0 = model.draw(num_points, noise)
    t = times_of(sampler, model.sde)[:1].expand(len(x0))
    return model.sde.perturb(x0, t, noise.normal_like(x0))


def differences(
    model: PlaneOracle, sampler: Sampler, parameterizations: Sequence[str], allowed: float, seed: int
) -> dict[str, Checked]:
    """Distances of each parameterization's samples from the closed form's, from the same x_T by the same noise."""
    x_T = _start(model, sampler, SAME_POINTS, NoiseStreams(derive_seed(seed, 3), [0]))
    samples = [
        sampler.sample(asked, x_T, noise=NoiseStreams(derive_seed(seed, 4), [0])).x0
        for asked in (model, *(network_model(model, name) for name in parameterizations))
    ]
    return {
        name: Checked(float((sample - samples[0]).abs().max()), allowed)
        for name, sample in zip(parameterizations, samples[1:], strict=True)
    }


def compare(
    coarse: Tensor, fine: Tensor, *, allowance: float, noise_ratio: float, nfe: int, same: dict[str, Checked]
) -> MixtureCell:
    """Hold the finer run to the bounds.

    With b the bias of the finer run, e its error seen and d the coarser run's error minus e, all but b with noise:
    |e| <= |b| + |noise of e|, and |b| <= allowance (|d| + |noise of d|) by the order; each noise is given ``SIGMAS``
    standard errors. Every sampler's output is denoised last, which takes about r^2 from the covariance.

    Args:
        coarse: Points of the coarser run, [N, 2].
        fine: Points of the finer run, [N, 2]; point k of both starts at the same x_T.
        allowance: See ``Entry.allowance``.
        noise_ratio: r = sigma / alpha before the last denoising.
        nfe: Network calls of the finer run.
        same: See ``MixtureCell``.
    """
    num_points = len(fine)
    fine_errors, change = moment_errors(fine), moment_errors(coarse) - moment_errors(fine)
    root = math.sqrt(num_points)
    error = fine_errors.mean(0)
    noise = SIGMAS * (fine_errors.std(0) + allowance * change.std(0)) / root
    bounds = allowance * change.mean(0).abs() + noise + 3 * noise_ratio**2
    checked = [Checked(e, b) for e, b in zip(error.tolist(), bounds.tolist(), strict=True)]
    mean, cov, third = (
        max(group, key=lambda c: abs(c.value) / c.bound) for group in (checked[:2], checked[2:5], checked[5:])
    )
    densities = [density_errors(points) for points in (coarse, fine)]
    # Of d's norm only its noise along b can take away, of variance 2 / N at most. Shrinking the narrowest of the
    # components by r^2 is a divergence of (r^2 / variance)^2 at most.
    change_seen = float((densities[0] - densities[1]).norm()) + SIGMAS * math.sqrt(2) / root
    narrowest = min((xx + yy) / 2 - math.hypot((xx - yy) / 2, xy) for xx, xy, yy in (c.cov for c in MIXTURE))
    bound = allowance * change_seen + exact_distance_quantile(num_points) + noise_ratio**2 / narrowest
    return MixtureCell(nfe, mean, cov, third, Checked(float(densities[1].norm()), bound), same)
