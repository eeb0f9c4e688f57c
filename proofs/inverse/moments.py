"""Gaussian data: mean and covariance of what affine methods draw, step by step and without Monte-Carlo error."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from samplers import StepState
from samplers.grid_sampler import GridSampler
from sde_lib import NoiseStreams, points_of

from ..gaussian import Moments
from ..recursion import noisy_points
from .methods import Method, inner_sampler
from .problems import SDE, Problem

# the mean, two for the covariance, and one for each number that a step may draw
_ROWS = 3 + 6


class _Impulses(NoiseStreams):
    """Noise that is 0, but for its k-th number, which is 1 in row 3 + k of the batch."""

    def __init__(self) -> None:
        super().__init__(0, [0])
        self.next = 3

    def normal_like(self, x: Tensor) -> Tensor:
        """The next numbers of a step."""
        size, noise = x[0].numel(), torch.zeros_like(x)
        noise[self.next : self.next + size] = torch.eye(size, dtype=x.dtype)
        self.next += size
        return noise

    def gather(self, state: StepState) -> Tensor:
        """A hook that begins anew with the law of the state, which is all that the next step depends on.

        The rows become its mean m, and m plus each row of R, where R^T R is the covariance.
        """
        self.next = 3
        mean, effects = state.x[0], state.x[1:] - state.x[0]
        x = mean.expand_as(state.x).clone()
        x[1:3] += torch.linalg.qr(effects, mode="r").R
        return x


def law_of(method: Method, problem: Problem, inner: GridSampler) -> tuple[Moments, int]:
    """Mean and covariance of x0, from the exact p(x_T | y), by a sampler whose steps do not remember earlier ones.

    A step is x_s = M x_t + b + sum_k c_k z_k. One batch finds it: a row has the mean and no noise, each of two more has
    that plus a column of a square root of the covariance, and each number z_k has a row of its own.

    Args:
        method: One that is affine.
        problem: The data.
        inner: The sampler.

    Returns:
        The moments, and the network calls of a run.
    """
    noise, sampler = _Impulses(), method.sampler(inner)
    mean, cov = problem.noisy(points_of(SDE, inner.times(SDE)[:1])[0])
    x_T = mean.expand(_ROWS, -1).clone()
    x_T[1:3] += torch.linalg.cholesky(cov).mT
    hooks = [*method.hooks(problem, _ROWS), noise.gather]
    result = sampler.sample(method.model(problem, inner), x_T, cond=problem.told(_ROWS), noise=noise, hooks=hooks)
    effects = result.x0[1:] - result.x0[0]
    return (result.x0[0], effects.mT @ effects), result.nfe


def errors_of(found: Moments, truth: Moments, scales: Tensor) -> Tensor:
    """The errors by ``QUANTITIES``, [5], of numbers in units of their scales."""
    mean, cov = (found[0] - truth[0]) / scales, (found[1] - truth[1]) / torch.outer(scales, scales)
    return torch.stack([*mean, cov[0, 0], cov[1, 1], cov[0, 1]])


@dataclass(frozen=True)
class AffineRow:
    """Errors of a method on Gaussian data, each by ``QUANTITIES``.

    Attributes:
        nfe: Network calls of the first run, of 200 steps.
        errors: Its errors.
        limit: Those that more and more steps lead to: the method's own.
        within: The most that the limit may be off.
    """

    nfe: int
    errors: Tensor
    limit: Tensor
    within: Tensor


def affine_row(method: Method, problem: Problem, label: str, *, refinement: int = 0) -> AffineRow:
    """Run a method with a number of steps, twice and four times as many, and extrapolate.

    Of an error L + c h^p, two runs with h and h / 2 give L. The next power of h is what L from the first two runs and L
    from the last two differ by.

    Args:
        method: One that is affine.
        problem: The data.
        label: The sampler.
        refinement: Of the first run; 0 is 200 steps.
    """
    runs, calls, order = [], [], 1.0
    for finer in range(3):
        entry, inner = inner_sampler(label, refinement + finer)
        order = method.order(entry)
        law, nfe = law_of(method, problem, inner)
        truth = problem.denoised(noisy_points(SDE, inner.times(SDE))[-1])
        runs.append(errors_of(law, truth, problem.scales))
        calls.append(nfe)
    before, limit = (fine + (fine - coarse) / (2**order - 1) for coarse, fine in (runs[:2], runs[1:]))
    return AffineRow(calls[0], runs[0], limit, (limit - before).abs())
