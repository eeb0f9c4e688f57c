"""The weak order of samplers with noise: how fast expectations of what they draw approach the truth, without chance.

A sampler without memory takes x to m(x) + c z. What it makes of E f(x_s), as a function of x_t, is u_t(x) =
E u_s(m(x) + c z): a Gaussian integral a step, done here by Gauss-Hermite quadrature on splines. The last integral, over
x_T, is over a density known exactly. So no draw is needed, and an order can be read off errors of 1e-4.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from scipy.interpolate import CubicSpline
from torch import Tensor

from models import Cond, GaussianMixtureScoreModel, Prediction
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams

from .oracles import FRACTION
from .orders import MIDDLE, Convergence, Solver, grid_between

STEPS = (160, 320, 640)
# mean, variance and weight of each Gaussian on the line
LINES: dict[str, tuple[tuple[float, float, float], ...]] = {
    "Gaussian": ((0.7, 0.3, 1.0),),
    "mixture": ((-0.8, 0.05, 0.35), (0.6, 0.1, 0.65)),
}
# of the test functions cos(f x) and sin(f x); bounded, so that the tails are of no matter
FREQUENCIES = (1.0, 2.0)
NODES, SPLINE_POINTS = 12, 1001
# each without memory, and with one draw a step
SAMPLERS: tuple[Solver, ...] = (
    Solver("Euler-Maruyama", "euler_maruyama", 1),
    Solver("reverse diffusion", "reverse_diffusion", 1),
    *(Solver(f"ancestral, {v}", "ancestral", 1, {"variance": v}) for v in ("small", "large", "learned")),
    *(Solver(f"DDIM, eta = {eta:g}", "ddim", 1, {"eta": eta}) for eta in (0.5, 1.0)),
    Solver("SDE-DPM-Solver++ 1", "dpm_solver_pp", 1, {"variant": "1", "stochastic": True}),
)


class _Constant(NoiseStreams):
    """Noise that is the same number everywhere."""

    def __init__(self, value: float) -> None:
        super().__init__(0, [0])
        self.value = value

    def normal_like(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


class _LearnedVariance(GaussianMixtureScoreModel):
    """The exact model, with a learned variance: at ``FRACTION`` between the small one and the large one."""

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        return replace(super().forward(x_t, t, cond=cond), variance_fraction=torch.full_like(x_t, FRACTION))


def _moments(line: tuple[tuple[float, float, float], ...], alpha: float, var: float) -> Float[ndarray, "functions"]:
    """E cos(f x) and E sin(f x) of alpha x0 + sqrt(var) z."""
    values = []
    for f in FREQUENCIES:
        parts = [w * np.exp(1j * f * alpha * m - f**2 * (alpha**2 * v + var) / 2) for m, v, w in line]
        values += [sum(parts).real, sum(parts).imag]
    return np.array(values)


def weak_error(sde: SDE, sampler: Solver, line: tuple[tuple[float, float, float], ...], num_steps: int) -> float:
    """Norm of the errors of the expectations at the grid's end, of x_T from the exact p at its beginning."""
    means, covs = (torch.tensor([row[k] for row in line], dtype=torch.float64) for k in (0, 1))
    weights = [weight for _, _, weight in line]
    model = _LearnedVariance(sde, means=means[:, None], covs=covs[:, None, None], weights=weights)
    times = grid_between(sde, num_steps, MIDDLE)
    alphas, sigmas = sde.alpha(times).numpy(), sde.sigma(times).numpy()

    def points(index: int) -> ndarray:
        reach = 1.5 * alphas[index] + 9 * np.sqrt(0.3 * alphas[index] ** 2 + sigmas[index] ** 2)
        return np.linspace(-reach, reach, SPLINE_POINTS)

    nodes, shares = np.polynomial.hermite_e.hermegauss(NODES)
    shares = shares / shares.sum()
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
        values = np.einsum("pnf,n->pf", after(reached.clip(low, high)), shares)
    density = model.log_prob(torch.from_numpy(x)[:, None], times[:1].expand(len(x))).exp().numpy()
    found = (values * density[:, None]).sum(0) * (x[1] - x[0])
    return float(np.linalg.norm(found - _moments(line, alphas[-1], sigmas[-1] ** 2)))


def weak_convergences(
    sde: SDE, *, samplers: tuple[Solver, ...] = SAMPLERS, steps: tuple[int, ...] = STEPS
) -> Iterator[Convergence]:
    """Measure samplers on an SDE, on a Gaussian and on a mixture on the line.

    Args:
        sde: The SDE.
        samplers: The samplers.
        steps: Numbers of steps, rising.
    """
    for sampler in samplers:
        for distribution, line in LINES.items():
            errors = tuple(weak_error(sde, sampler, line, num_steps) for num_steps in steps)
            yield Convergence(sampler, distribution, errors, steps)
