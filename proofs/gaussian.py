"""The Gaussian: the law of a linear sampler's output, found exactly and without Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from models import ScoreModel
from samplers import Sampler
from sde_lib import SDE, NoiseStreams, Point, derive_seed, points_of

from .checked import SIGMAS, Cell, Checked, times_of
from .entries import Entry
from .oracles import GAUSSIAN, PlaneOracle, central_moments, network_model, parameterizations_of, points_in_plane
from .recursion import AXES, Law, noisy_points

# what float64 loses on the way, far below any error shown
ROUNDING = 1e-9
STREAMS = 4
_MEAN, _COV, _ = central_moments(GAUSSIAN)
# mean [2] and covariance [2, 2]
Moments = tuple[Tensor, Tensor]


class Impulses(NoiseStreams):
    """Noise that is 0, but for the k-th draw, which is (1, 0) at point 3 + 2k and (0, 1) at the one after."""

    def __init__(self) -> None:
        super().__init__(0, [0])
        self.draws = 0

    def normal_like(self, x: Tensor) -> Tensor:
        """The next draw."""
        noise = torch.zeros_like(x)
        if x.shape[2] > 3:
            noise[0, :, 3 + 2 * self.draws : 5 + 2 * self.draws] = torch.eye(2, dtype=x.dtype)
        self.draws += 1
        return noise


def exact_output(sampler: Sampler, model: ScoreModel, start: Moments) -> tuple[Moments, int]:
    """Mean and covariance of x0 = A x_T + b + sum_k C_k z_k, which is what a linear sampler makes of x_T and its noise.

    The points of a sample do not see each other, so that one sample of 3 + 2 K points finds b, A and all K matrices.

    Args:
        sampler: The sampler.
        model: A model of the Gaussian.
        start: Mean and covariance of x_T.

    Returns:
        The moments, and the network calls of a run.
    """
    counter = Impulses()
    sampler.sample(model, torch.zeros(1, 2, 3, dtype=torch.float64), noise=counter)
    x_T = torch.zeros(1, 2, 3 + 2 * counter.draws, dtype=torch.float64)
    x_T[0, :, 1:3] = torch.eye(2, dtype=torch.float64)
    result = sampler.sample(model, x_T, noise=Impulses())
    b = result.x0[0, :, 0]
    effects = result.x0[0, :, 1:] - b[:, None]
    gain, on_noise = effects[:, :2], effects[:, 2:]
    return (gain @ start[0] + b, gain @ start[1] @ gain.mT + on_noise @ on_noise.mT), result.nfe


def marginal(point: Point) -> Moments:
    """Mean and covariance of p_t."""
    return point.alpha * _MEAN, point.alpha**2 * _COV + point.sigma**2 * torch.eye(2, dtype=torch.float64)


def target(sde: SDE, times: Tensor) -> Moments:
    """Mean and covariance of E[x0 | x_s], s the last time with noise, which is where every sampler ends."""
    last = noisy_points(sde, times)[-1]
    return _MEAN, last.alpha**2 * _COV @ torch.linalg.solve(marginal(last)[1], _COV)


def _sampled_output(
    sampler: Sampler, model: ScoreModel, oracle: PlaneOracle, num_points: int, seed: int
) -> tuple[Moments, int]:
    noise = NoiseStreams(seed, range(STREAMS))
    x_T = oracle.draw_noisy(times_of(sampler, oracle.sde)[:1], num_points // STREAMS, noise)
    result = sampler.sample(model, x_T, noise=noise)
    points = points_in_plane(result.x0)
    return (points.mean(0), points.T.cov()), result.nfe


def _from_law(law: Law) -> Moments:
    return torch.from_numpy(AXES @ law.mean), torch.from_numpy(AXES @ np.diag(law.var) @ AXES.T)


def prove_gaussian(
    sde: SDE,
    entry: Entry,
    *,
    parameterizations: Sequence[str] | None = None,
    num_points: int = 100_000,
    seed: int = 0,
) -> dict[str, Cell]:
    """Run one sampler on one SDE, from the exact p(x_T), with every parameterization.

    How much the law changes by a refinement says how far it may be from the truth after it; what it changes by is
    measured with the closed form, the distance with a network of each parameterization.

    Args:
        sde: The SDE.
        entry: The sampler.
        parameterizations: Some of ``parameterizations_of(sde)``; None is all.
        num_points: Draws for each parameterization, for samplers that are not linear.
        seed: Seed of these.

    Returns:
        One cell a parameterization, with the norm of the mean's error, the Frobenius norm of the covariance's, the KL
        divergence of the output from the truth in nats, and for Langevin samplers the distance from the papers'
        formulas in units of what is allowed.
    """
    oracle = PlaneOracle(sde, GAUSSIAN)
    changes, law = _laws(sde, entry, oracle)
    sampler = entry.build(sde, 1)
    times = times_of(sampler, sde)
    truth = target(sde, times)
    noise = _noise(law, num_points) if law is not None and entry.by_norms else (0.0, 0.0)
    cells = {}
    for index, parameterization in enumerate(
        parameterizations_of(sde) if parameterizations is None else parameterizations
    ):
        model = network_model(oracle, parameterization)
        if entry.by_norms:
            output, nfe = _sampled_output(sampler, model, oracle, num_points, derive_seed(seed, index))
        else:
            output, nfe = exact_output(sampler, model, marginal(points_of(sde, times[:1])[0]))
        mean, cov = (
            Checked(float((value - true).norm()), entry.allowance(sde) * change + extra + ROUNDING)
            for value, true, change, extra in zip(output, truth, changes, noise, strict=True)
        )
        formulas = None
        if law is not None:
            pairs = zip(output, _from_law(law), noise, strict=True)
            # the larger of the two, each in units of its own allowance
            formulas = Checked(max(float((a - b).norm()) / (extra + ROUNDING) for a, b, extra in pairs), 1.0)
        kl = Checked(_kl(output, truth), _kl_bound(mean.bound, cov.bound, truth[1]))
        cells[parameterization] = Cell(nfe, {"mean": mean, "cov": cov, "kl": kl, "formulas": formulas})
    return cells


def _laws(sde: SDE, entry: Entry, oracle: PlaneOracle) -> tuple[list[float], Law | None]:
    """The change of mean and covariance by the refinement, and the papers' law of the finer run."""
    outputs: list[Moments] = []
    law = None
    for refinement in (0, 1):
        sampler = entry.build(sde, refinement)
        times = times_of(sampler, sde)
        law = None if entry.law is None else entry.law(sde, times, refinement)
        if law is not None and entry.by_norms:
            outputs.append(_from_law(law))
        else:
            outputs.append(exact_output(sampler, oracle, marginal(points_of(sde, times[:1])[0]))[0])
    return [float((coarse - fine).norm()) for coarse, fine in zip(*outputs, strict=True)], law


def _noise(law: Law, num_points: int) -> tuple[float, float]:
    """``SIGMAS`` standard errors of the norms of the errors of mean and covariance of draws of a Gaussian.

    E |mean error|^2 = tr cov / N and E |cov error|_F^2 = (tr^2 cov + tr cov^2) / N.
    """
    trace, trace_sq = float(law.var.sum()), float((law.var**2).sum())
    slack = float(np.linalg.norm(law.slack)) / math.sqrt(2 * num_points // STREAMS)
    return SIGMAS * math.sqrt(trace / num_points), SIGMAS * math.sqrt((trace**2 + trace_sq) / num_points) + slack


def _kl(output: Moments, truth: Moments) -> float:
    """KL(N(output) || N(truth)) = (tr E - log det(1 + E) + |offset|^2) / 2, in the truth's own units."""
    lower = torch.linalg.cholesky(truth[1])
    whitened = torch.linalg.solve_triangular(lower, output[1] - truth[1], upper=False)
    excess = torch.linalg.eigvalsh(torch.linalg.solve_triangular(lower, whitened.mT, upper=False))
    offset = torch.linalg.solve_triangular(lower, (output[0] - truth[0])[:, None], upper=False)
    return float((excess - excess.log1p()).sum() + offset.square().sum()) / 2


def _kl_bound(mean_bound: float, cov_bound: float, cov: Tensor) -> float:
    """The largest divergence if mean and covariance are within their bounds.

    By x - log(1 + x) <= x^2 / 2 / (1 - |x|) for each eigenvalue x of the excess.
    """
    narrowest = float(torch.linalg.eigvalsh(cov)[0])
    excess = cov_bound / narrowest
    if excess >= 1:
        return math.inf
    return (excess**2 / 2 / (1 - excess) + mean_bound**2 / narrowest) / 2 + 1e-15
