"""The weak order of samplers with noise: how fast expectations of what they draw approach the truth, without chance.

A sampler without memory takes x to m(x) + c z. What it makes of E f(x_s), as a function of x_t, is u_t(x) =
E u_s(m(x) + c z): a Gaussian integral a step, done here by Gauss-Hermite quadrature on splines. The last integral, over
x_T, is over a density known exactly. So no draw is needed, and an order can be read off errors of 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.interpolate import CubicSpline
from torch import Tensor

from models import Cond, GaussianMixtureScoreModel, Prediction, ScoreModel
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams

from .checked import Checked
from .oracles import FRACTION
from .orders import MIDDLE, TOLERANCE, grid_between

STEPS = (160, 320, 640)
# mean, variance and weight of each Gaussian on the line
LINES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "Gaussian": ((0.7, 0.3, 1.0),),
    "mixture": ((-0.8, 0.05, 0.35), (0.6, 0.1, 0.65)),
}
# of the test functions cos(f x) and sin(f x); bounded, so that the tails are of no matter
FREQUENCIES = (1.0, 2.0)
NODES, SPLINE_POINTS = 12, 1001


@dataclass(frozen=True)
class NoisySampler:
    """A sampler without memory that draws one noise a step.

    Attributes:
        label: What the table calls it.
        name: Its name in the registry.
        options: Its options.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)


SAMPLERS: tuple[NoisySampler, ...] = (
    NoisySampler("Euler-Maruyama", "euler_maruyama"),
    NoisySampler("reverse diffusion", "reverse_diffusion"),
    *(NoisySampler(f"ancestral, {v}", "ancestral", {"variance": v}) for v in ("small", "large", "learned")),
    *(NoisySampler(f"DDIM, eta = {eta:g}", "ddim", {"eta": eta}) for eta in (0.5, 1.0)),
    NoisySampler("SDE-DPM-Solver++ 1", "dpm_solver_pp", {"variant": "1", "stochastic": True}),
)


@dataclass(frozen=True)
class WeakConvergence:
    """The convergence of a sampler's expectations.

    Attributes:
        sampler: The sampler.
        distribution: A name of ``LINES``.
        errors: Errors at ``steps``, the norm over the test functions.
        steps: Numbers of steps.
    """

    sampler: NoisySampler
    distribution: str
    errors: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def measured(self) -> tuple[float, ...]:
        """Orders from each number of steps to the next."""
        errors, steps = np.array(self.errors), np.array(self.steps)
        return tuple(np.log(errors[:-1] / errors[1:]) / np.log(steps[1:] / steps[:-1]))

    @property
    def checked(self) -> Checked:
        """The last measured order, less 1, and what that may be."""
        return Checked(self.measured[-1] - 1, TOLERANCE)


class _Constant(NoiseStreams):
    """Noise that is the same number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__(0, [0])
        self.value = value

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


class _WithFraction(ScoreModel):
    """A model with a learned variance: at ``FRACTION`` between the small one and the large one."""

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model.sde)
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        raw = self.model(x_t, t, cond=cond)
        return Prediction(x0=raw.x0, eps=raw.eps, sigma=raw.sigma, variance_fraction=torch.full_like(x_t, FRACTION))


def _moments(line: tuple[tuple[float, float, float], ...], alpha: float, var: float) -> Float[ndarray, "functions"]:
    """E cos(f x) and E sin(f x) of alpha x0 + sqrt(var) z."""
    values = []
    for f in FREQUENCIES:
        parts = [w * np.exp(1j * f * alpha * m - f**2 * (alpha**2 * v + var) / 2) for m, v, w in line]
        values += [sum(parts).real, sum(parts).imag]
    return np.array(values)


def weak_error(sde: SDE, sampler: NoisySampler, line: tuple[tuple[float, float, float], ...], num_steps: int) -> float:
    """Norm of the errors of the expectations at the grid's end, of x_T from the exact p at its beginning."""
    means, covs = (torch.tensor([row[k] for row in line], dtype=torch.float64) for k in (0, 1))
    model = _WithFraction(
        GaussianMixtureScoreModel(sde, means=means[:, None], covs=covs[:, None, None], weights=[w for _, _, w in line])
    )
    times = grid_between(sde, num_steps, MIDDLE)
    alphas, sigmas = sde.alpha(times).numpy(), sde.sigma(times).numpy()

    def points(index: int) -> ndarray:
        reach = 1.5 * alphas[index] + 9 * np.sqrt(0.3 * alphas[index] ** 2 + sigmas[index] ** 2)
        return np.linspace(-reach, reach, SPLINE_POINTS)

    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    x = points(num_steps)
    values = np.stack([g(f * x) for f in FREQUENCIES for g in (np.cos, np.sin)], 1)
    for index in reversed(range(num_steps)):
        after = CubicSpline(x, values)
        low, high = x[0], x[-1]
        x = points(index)
        start = torch.from_numpy(x)[:, None]
        one_step = make_sampler(sampler.name, grid=times[index : index + 2], denoise_final=False, **sampler.options)
        still, moved = (one_step.sample(model, start, noise=_Constant(z)).x0[:, 0].numpy() for z in (0.0, 1.0))
        reached = still[:, None] + (moved - still)[:, None] * nodes
        # what lands outside came from further out than any mass worth the name
        values = np.einsum("pnf,n->pf", after(reached.clip(low, high)), weights)
    alpha, var = alphas[0], sigmas[0] ** 2
    density = sum(
        w * np.exp(-((x - alpha * m) ** 2) / 2 / (alpha**2 * v + var)) / np.sqrt(2 * np.pi * (alpha**2 * v + var))
        for m, v, w in line
    )
    found = (values * np.asarray(density)[:, None]).sum(0) * (x[1] - x[0])
    return float(np.linalg.norm(found - _moments(line, alphas[-1], sigmas[-1] ** 2)))


def weak_convergences(
    sde: SDE, *, samplers: tuple[NoisySampler, ...] = SAMPLERS, steps: tuple[int, ...] = STEPS
) -> Iterator[WeakConvergence]:
    """Measure samplers on an SDE, on a Gaussian and on a mixture on the line.

    Args:
        sde: The SDE.
        samplers: The samplers.
        steps: Numbers of steps, rising.
    """
    for sampler in samplers:
        for distribution, line in LINES.items():
            errors = tuple(weak_error(sde, sampler, line, num_steps) for num_steps in steps)
            yield WeakConvergence(sampler, distribution, errors, steps)
