"""Data with two modes, and methods that are not affine: draws, with their standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models import PiGDMScoreModel
from samplers import SampleResult, TwistedSampler
from samplers.grid_sampler import GridSampler
from sde_lib import NoiseStreams, points_of

from .methods import STEPS, Method
from .problems import OPERATOR, SDE, Problem

PARTICLES = {f"TDS, K = {count}": count for count in (1, 4, 16, 64)}
# a number and its standard error
Estimate = tuple[float, float]


@dataclass(frozen=True)
class Drawn:
    """Errors of samples, with their standard errors.

    Attributes:
        nfe: Network calls.
        errors: By ``QUANTITIES``, [5].
        stderrs: [5].
        weight: That of the first mode, where there are two.
        log_evidence: Of samples by particles, log p(y) less the exact one.
    """

    nfe: int
    errors: Tensor
    stderrs: Tensor
    weight: Estimate | None = None
    log_evidence: Estimate | None = None


class _OneStream(NoiseStreams):
    """One generator for a whole batch: cheap, where no sample need be the same in another batch."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed, [0])
        self.generator = torch.Generator().manual_seed(seed)

    def normal_like(self, x: Tensor) -> Tensor:
        """The next draw."""
        return torch.randn(x.shape, dtype=x.dtype, generator=self.generator)


def drawn_row(method: Method, problem: Problem, inner: GridSampler, *, count: int, seed: int) -> Drawn:
    """Sample p(x | y) by a method, from the exact p(x_T | y).

    Args:
        method: The method.
        problem: The data.
        inner: The sampler.
        count: Samples.
        seed: Their seed.
    """
    noise = _OneStream(seed)
    (first,) = points_of(SDE, inner.times(SDE)[:1])
    x0 = problem.posterior.sample_data(count, noise.generator)
    x_T = first.alpha * x0 + first.sigma * noise.normal_like(x0)
    model, told, hooks = method.model(problem, inner), problem.told(count), method.hooks(problem, count)
    return _drawn(problem, method.sampler(inner).sample(model, x_T, cond=told, noise=noise, hooks=hooks))


def twisted_row(problem: Problem, particles: int, *, refinement: int, count: int, seed: int) -> Drawn:
    """Sample p(x | y) by particles whose twist is PiGDM's, and estimate log p(y).

    Args:
        problem: The data.
        particles: K.
        refinement: 0 is 200 steps, 1 is 400.
        count: Samples.
        seed: Their seed.
    """
    model = PiGDMScoreModel(problem.prior, OPERATOR, noise_std=problem.noise_std)
    sampler = TwistedSampler(num_particles=particles, num_steps=STEPS * 2**refinement, grid="log_snr")
    noise = NoiseStreams(seed, range(count))
    x_T = sampler.prior_sample(SDE, (2,), noise).double()
    result = sampler.sample(model, x_T, cond=problem.told(count), noise=noise)
    assert result.log_evidence is not None
    # the mean of p(y)'s estimates is right, that of their logarithms is too low
    mean, stderr = _mean((result.log_evidence - problem.log_evidence).exp())
    return _drawn(problem, result, (math.log(mean), stderr / mean))


def _drawn(problem: Problem, result: SampleResult, log_evidence: Estimate | None = None) -> Drawn:
    mean, cov = problem.posterior.mean_and_cov()
    z = (result.x0 - mean) / problem.scales
    centred, exact = z - z.mean(0), cov / torch.outer(problem.scales, problem.scales)
    products = torch.stack([centred[:, 0] ** 2, centred[:, 1] ** 2, centred.prod(1)], 1)
    errors = torch.cat([z.mean(0), products.mean(0) - torch.stack([exact[0, 0], exact[1, 1], exact[0, 1]])])
    stderrs = torch.cat([z.std(0), products.std(0)]) / math.sqrt(len(z))
    weight = _mean(problem.share_of_first(result.x0)) if len(problem.means) > 1 else None
    return Drawn(result.nfe, errors, stderrs, weight, log_evidence)


def _mean(values: Tensor) -> Estimate:
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))
