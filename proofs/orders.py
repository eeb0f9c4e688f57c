"""The order at which each deterministic solver converges to the flow's own solution, point by point."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from samplers import Sampler, make_sampler
from sde_lib import SDE, Point, points_of

from .checked import Checked
from .gaussian import marginal
from .oracles import GAUSSIAN, MIXTURE, PlaneOracle, central_moments

# measured and promised orders may differ by this
TOLERANCE = 0.15
# the orders are those seen between the last two numbers of steps
STEPS = (80, 160, 320)
# log-SNR of the first and the last time: where a mixture's components part, away from either end
MIDDLE = (-1.0, 5.0)
# where a grid usually starts, as far as the SDE goes there: x0 hardly depends on x_t
FROM_NOISE = (-9.0, 6.0)
CHECK_STEPS = 800


@dataclass(frozen=True)
class Solver:
    """A solver of the tables of orders.

    Attributes:
        label: What the table calls it.
        name: Its name in the registry.
        order: The order that it promises.
        options: Its options.
        ends: Log-SNR of the first and the last time.
        on_gaussian: The order on the Gaussian, where that is another.
        note: Why the order is what it is, where that is not in the solver's name.
    """

    label: str
    name: str
    order: int
    options: dict[str, Any] = field(default_factory=dict)
    ends: tuple[float, float] = MIDDLE
    on_gaussian: int | None = None
    note: str = ""

    def build(self, grid: Tensor) -> Sampler:
        """The solver on a grid, without a final denoising: the flow ends with noise left."""
        return make_sampler(self.name, grid=grid, denoise_final=False, **self.options)


# The midpoint rule's error of third order vanishes on a Gaussian: there, with P = v + r^2, both it and the flow's own
# solution y sqrt(P(r + h) / P(r)) have -r / (2 P^2) + r^3 / (2 P^3) before h^3.
SOLVERS: tuple[Solver, ...] = (
    Solver("Euler (DDIM)", "ddim", 1),
    Solver("flow, Euler", "probability_flow", 1, {"solver": "euler"}),
    Solver("flow, Heun", "probability_flow", 2, {"solver": "heun"}),
    Solver("flow, midpoint", "probability_flow", 2, {"solver": "midpoint"}, on_gaussian=3),
    Solver("flow, RK4", "probability_flow", 4, {"solver": "rk4"}),
    Solver("Heun (Karras)", "heun", 2),
    Solver("DPM-Solver++ 1", "dpm_solver_pp", 1, {"variant": "1"}),
    Solver("DPM-Solver++ 2M", "dpm_solver_pp", 2, {"variant": "2M"}),
    Solver("DPM-Solver++ 2S", "dpm_solver_pp", 2, {"variant": "2S"}),
    Solver("DPM-Solver++ 3M, warm start", "dpm_solver_pp", 3, {"variant": "3M", "warm_start": True}),
    Solver("DPM-Solver++ 3M", "dpm_solver_pp", 2, {"variant": "3M"}, note="its first step is of order 1"),
    Solver("UniPC 1", "unipc", 2, {"order": 1}, note="p + 1"),
    Solver("UniPC 2", "unipc", 3, {"order": 2}, note="p + 1"),
    Solver("UniPC 3", "unipc", 4, {"order": 3}, FROM_NOISE, note="p + 1"),
    Solver("UniPC 3", "unipc", 3, {"order": 3}, note="its first step is of order 1 + 1"),
)


@dataclass(frozen=True)
class Convergence:
    """The convergence of a solver.

    Attributes:
        solver: The solver.
        distribution: "Gaussian" or "mixture".
        errors: Errors at ``steps``, the norm over the starting points or the test functions.
        steps: Numbers of steps.
    """

    solver: Solver
    distribution: str
    errors: tuple[float, ...]
    steps: tuple[int, ...]

    @property
    def measured(self) -> tuple[float, ...]:
        """Orders from each number of steps to the next."""
        errors, steps = np.array(self.errors), np.array(self.steps)
        return tuple(np.log(errors[:-1] / errors[1:]) / np.log(steps[1:] / steps[:-1]))

    @property
    def promised(self) -> int:
        """The promised order on this distribution."""
        special = self.solver.on_gaussian if self.distribution == "Gaussian" else None
        return self.solver.order if special is None else special

    @property
    def checked(self) -> Checked:
        """The last measured order, less the promised one, and what that may be."""
        return Checked(self.measured[-1] - self.promised, TOLERANCE)


def grid_between(sde: SDE, num_steps: int, ends: tuple[float, float]) -> Tensor:
    """Times at equal steps in log-SNR, from the first end, or where the SDE begins, to the second."""
    first = max(ends[0], float(sde.log_snr(torch.tensor([sde.t_max], dtype=torch.float64))) + 1e-6)
    return sde.time_from_log_snr(torch.linspace(first, ends[1], num_steps + 1, dtype=torch.float64))


def starting_points(t: Point) -> Tensor:
    """Five points within two standard deviations of x_t, [1, 2, 5]."""
    scale = math.sqrt(0.4 * t.alpha**2 + t.sigma**2)
    points = [[1.0, 0.2], [-0.7, 1.1], [0.3, -1.6], [-1.2, -0.4], [0.1, 0.1]]
    return scale * torch.tensor([points], dtype=torch.float64).mT


def gaussian_flow(x: Tensor, t: Point, s: Point) -> Tensor:
    """The flow of the Gaussian: x_s = alpha_s mean + V_s^(1/2) V_t^(-1/2) (x_t - alpha_t mean)."""
    (mean_t, cov_t), (mean_s, cov_s) = marginal(t), marginal(s)
    axes = torch.linalg.eigh(central_moments(GAUSSIAN)[1]).eigenvectors
    widths_t, widths_s = ((axes.mT @ cov @ axes).diagonal().sqrt() for cov in (cov_t, cov_s))
    gain = axes @ torch.diag(widths_s / widths_t) @ axes.mT
    return mean_s[:, None] + gain @ (x - mean_t[:, None])


@functools.cache
def mixture_flow(sde: SDE, ends: tuple[float, float]) -> Tensor:
    """The ends of the mixture's flow from the starting points, by SciPy's DOP853; Runge-Kutta at many steps agrees.

    Raises:
        ArithmeticError: If the two do not agree to 1e-8.
    """
    model, grid = PlaneOracle(sde, MIXTURE), grid_between(sde, CHECK_STEPS, ends)
    x = starting_points(points_of(sde, grid[:1])[0])
    options = {"solver": "scipy_dop853", "rtol": 1e-13, "atol": 1e-13, "grid": grid[[0, -1]], "denoise_final": False}
    found = make_sampler("probability_flow", **options).sample(model, x).x0
    check = make_sampler("probability_flow", solver="rk4", grid=grid, denoise_final=False).sample(model, x).x0
    difference = float((found - check).abs().max())
    if not difference < 1e-8:
        raise ArithmeticError(f"the references differ by {difference:.2g}, expected 1e-8 or less; refine them")
    return found


def convergences(
    sde: SDE, *, solvers: tuple[Solver, ...] = SOLVERS, steps: tuple[int, ...] = STEPS
) -> Iterator[Convergence]:
    """Measure solvers on an SDE, on the Gaussian and on the mixture.

    Args:
        sde: The SDE.
        solvers: The solvers.
        steps: Numbers of steps, rising.
    """
    for solver in solvers:
        for distribution, components in (("Gaussian", GAUSSIAN), ("mixture", MIXTURE)):
            model = PlaneOracle(sde, components)
            errors = []
            for num_steps in steps:
                grid = grid_between(sde, num_steps, solver.ends)
                first, last = points_of(sde, grid[[0, -1]])
                x = starting_points(first)
                gaussian = distribution == "Gaussian"
                exact = gaussian_flow(x, first, last) if gaussian else mixture_flow(sde, solver.ends)
                errors.append(float((solver.build(grid).sample(model, x).x0 - exact).norm()))
            yield Convergence(solver, distribution, tuple(errors), steps)
