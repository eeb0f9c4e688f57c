"""The Gaussian: the law of a linear sampler's output, found exactly and without Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from models import ScoreModel
from samplers import Sampler
from sde_lib import SDE, NoiseStreams, derive_seed

from .checked import SIGMAS, Checked, times_of
from .entries import Entry
from .oracles import GAUSSIAN, PARAMETERIZATIONS, PlaneOracle, central_moments, network_model
from .recursion import AXES, Law, last_point

# what float64 loses on the way, far below any error shown
ROUNDING = 1e-9
STREAMS = 4
_MEAN, _COV, _ = central_moments(GAUSSIAN)


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


@dataclass(frozen=True)
class Output:
    """The law of a sampler's output.

    Attributes:
        mean: Its mean.
        cov: Its covariance.
        nfe: Network calls.
    """

    mean: Float[Tensor, "2"]
    cov: Float[Tensor, "2 2"]
    nfe: int


@dataclass(frozen=True)
class GaussianCell:
    """One sampler on one SDE with one parameterization.

    Attributes:
        nfe: Network calls of the finer run.
        mean: Norm of the error of the mean.
        cov: Frobenius norm of the error of the covariance.
        kl: KL divergence of the output from the truth, in nats.
        formulas: For Langevin samplers, how far mean and covariance are from the papers' formulas; else None.
    """

    nfe: int
    mean: Checked
    cov: Checked
    kl: Checked
    formulas: Checked | None

    @property
    def passed(self) -> bool:
        """True if all numbers are within their bounds."""
        return all(c.passed for c in (self.mean, self.cov, self.kl, self.formulas) if c is not None)


def exact_output(sampler: Sampler, model: ScoreModel, start: tuple[Tensor, Tensor]) -> Output:
    """Mean and covariance of x0 = A x_T + b + sum_k C_k z_k, which is what a linear sampler makes of x_T and its noise.

    The points of a sample do not see each other, so that one sample of 3 + 2 K points finds b, A and all K matrices.

    Args:
        sampler: The sampler.
        model: A model of the Gaussian.
        start: Mean and covariance of x_T.
    """
    counter = Impulses()
    sampler.sample(model, torch.zeros(1, 2, 3, dtype=torch.float64), noise=counter)
    x_T = torch.zeros(1, 2, 3 + 2 * counter.draws, dtype=torch.float64)
    x_T[0, :, 1:3] = torch.eye(2, dtype=torch.float64)
    result = sampler.sample(model, x_T, noise=Impulses())
    b = result.x0[0, :, 0]
    effects = result.x0[0, :, 1:] - b[:, None]
    gain, on_noise = effects[:, :2], effects[:, 2:]
    return Output(gain @ start[0] + b, gain @ start[1] @ gain.mT + on_noise @ on_noise.mT, result.nfe)


def marginal(sde: SDE, t: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of p_t."""
    time = torch.tensor([t], dtype=torch.float64)
    alpha, sigma = float(sde.alpha(time)), float(sde.sigma(time))
    return alpha * _MEAN, alpha**2 * _COV + sigma**2 * torch.eye(2, dtype=torch.float64)


def target(sde: SDE, times: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of E[x0 | x_s], s the last time with noise, which is where every sampler ends."""
    time, alpha, _ = last_point(sde, times)
    return _MEAN, alpha**2 * _COV @ torch.linalg.solve(marginal(sde, time)[1], _COV)


def _sampled_output(sampler: Sampler, model: ScoreModel, oracle: PlaneOracle, num_points: int, seed: int) -> Output:
    noise = NoiseStreams(seed, range(STREAMS))
    t = torch.full((STREAMS,), float(times_of(sampler, oracle.sde)[0]), dtype=torch.float64)
    x0 = oracle.draw(num_points // STREAMS, noise)
    x_T = oracle.sde.perturb(x0, t, noise.normal_like(x0))
    result = sampler.sample(model, x_T, noise=noise)
    points = result.x0.transpose(1, 2).reshape(-1, 2)
    return Output(points.mean(0), points.T.cov(), result.nfe)


def _from_law(law: Law) -> Output:
    mean, cov = AXES @ law.mean, AXES @ np.diag(law.var) @ AXES.T
    return Output(torch.from_numpy(mean), torch.from_numpy(cov), 0)


def prove_gaussian(
    sde: SDE,
    entry: Entry,
    *,
    parameterizations: Sequence[str] = PARAMETERIZATIONS,
    num_points: int = 100_000,
    seed: int = 0,
) -> dict[str, GaussianCell]:
    """Run one sampler on one SDE, from the exact p(x_T), with every parameterization.

    How much the law changes by a refinement says how far it may be from the truth after it; what it changes by is
    measured with the closed form, the distance with a network of each parameterization.

    Args:
        sde: The SDE.
        entry: The sampler.
        parameterizations: Some of ``PARAMETERIZATIONS``.
        num_points: Draws for each parameterization, for samplers that are not linear.
        seed: Seed of these.

    Returns:
        One cell a parameterization.
    """
    oracle = PlaneOracle(sde, GAUSSIAN)
    changes, law = _laws(sde, entry, oracle)
    sampler = entry.build(sde, 1)
    times = times_of(sampler, sde)
    truth = target(sde, times)
    cells = {}
    for index, parameterization in enumerate(parameterizations):
        model = network_model(oracle, parameterization)
        noise = [0.0, 0.0]
        if entry.kind == "norms":
            assert law is not None
            output = _sampled_output(sampler, model, oracle, num_points, derive_seed(seed, index))
            noise = _noise(law, num_points)
        else:
            output = exact_output(sampler, model, marginal(sde, float(times[0])))
        checks = [
            Checked(float((value - true).norm()), entry.allowance(sde) * change + extra + ROUNDING)
            for value, true, change, extra in zip((output.mean, output.cov), truth, changes, noise, strict=True)
        ]
        formulas = None
        if law is not None:
            expected = _from_law(law)
            pairs = zip((output.mean, output.cov), (expected.mean, expected.cov), noise, strict=True)
            # the larger of the two, each in units of its own allowance
            formulas = Checked(max(float((a - b).norm()) / (extra + ROUNDING) for a, b, extra in pairs), 1.0)
        kl = Checked(_kl(output, *truth), _kl_bound(checks[0].bound, checks[1].bound, truth[1]))
        cells[parameterization] = GaussianCell(output.nfe, checks[0], checks[1], kl, formulas)
    return cells


def _laws(sde: SDE, entry: Entry, oracle: PlaneOracle) -> tuple[tuple[float, float], Law | None]:
    """The change of mean and covariance by the refinement, and the papers' law of the finer run."""
    outputs: list[Output] = []
    law = None
    for refinement in (0, 1):
        sampler = entry.build(sde, refinement)
        times = times_of(sampler, sde)
        law = None if entry.law is None else entry.law(sde, times, refinement)
        if entry.kind == "norms":
            assert law is not None
            outputs.append(_from_law(law))
        else:
            outputs.append(exact_output(sampler, oracle, marginal(sde, float(times[0]))))
    coarse, fine = outputs
    return (float((coarse.mean - fine.mean).norm()), float((coarse.cov - fine.cov).norm())), law


def _noise(law: Law, num_points: int) -> list[float]:
    """``SIGMAS`` standard errors of the norms of the errors of mean and covariance of draws of a Gaussian.

    E |mean error|^2 = tr cov / N and E |cov error|_F^2 = (tr^2 cov + tr cov^2) / N.
    """
    trace, trace_sq = float(law.var.sum()), float((law.var**2).sum())
    slack = float(np.linalg.norm(law.slack)) / math.sqrt(2 * num_points // STREAMS)
    return [SIGMAS * math.sqrt(trace / num_points), SIGMAS * math.sqrt((trace**2 + trace_sq) / num_points) + slack]


def _kl(output: Output, mean: Tensor, cov: Tensor) -> float:
    """KL(N(output) || N(mean, cov)) = (tr E - log det(1 + E) + |offset|^2) / 2, in the truth's own units."""
    lower = torch.linalg.cholesky(cov)
    whitened = torch.linalg.solve_triangular(lower, output.cov - cov, upper=False)
    excess = torch.linalg.eigvalsh(torch.linalg.solve_triangular(lower, whitened.mT, upper=False))
    offset = torch.linalg.solve_triangular(lower, (output.mean - mean)[:, None], upper=False)
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
