"""ODE solvers with the options that each has, from an SDE's noise to its data or back."""

from __future__ import annotations

import math
from collections.abc import Callable, Container
from dataclasses import KW_ONLY, dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import whole_number
from runtime.registry import choices_message

from ..base import SDE
from ..grids import check_grid, check_grid_choice, last_noisy_time, make_grid
from .adams import solve_adams
from .solvers import ADAMS, ADAPTIVE, TABLEAUS, available_ode_solvers, check_installed

# the first step of "adams": of 1e-2 and 1e-3, both well below the tolerance, the longer saves 7 calls
_FIRST_STEP = 1e-2
# how many of its step sizes are in a factor of 2: a network's rounding, other in another batch, must not move the steps
_SIZES = 4


@dataclass(frozen=True, eq=False)
class GridSolver:
    """One step of a Runge-Kutta method between two times of a grid.

    Args:
        name: "euler", "heun", "midpoint" or "rk4", of order 1, 2, 2 and 4, with as many slopes a step.
        num_steps: Number of steps; with a tensor as ``grid`` it may be left out.
        grid: Name of a time grid, or a falling tensor of times, [num_steps + 1].
        max_nfe: Most network calls, at least 1; None is no limit.

    Raises:
        ValueError: If an option is unknown or out of range.
    """

    name: str
    num_steps: int | None = None
    _: KW_ONLY
    grid: str | Tensor = "log_snr"
    max_nfe: int | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        _check(self.name, TABLEAUS, self.max_nfe)
        label, fix = f"num_steps of {self.name}", "or take an adaptive solver"
        grid, num_steps = check_grid_choice(self.grid, self.num_steps, label=label, fix=fix)
        object.__setattr__(self, "grid", grid)
        object.__setattr__(self, "num_steps", num_steps)

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The falling times of the grid on an SDE, float64."""
        return make_grid(self.grid, sde, self.num_steps)

    def step(self, slope: Callable[..., Tensor], y: Tensor, start: float, end: float) -> Tensor:
        """The state at ``end``, by one step; see ``Tableau.step``."""
        return TABLEAUS[self.name].step(slope, y, start, end)


@dataclass(frozen=True, eq=False)
class AdaptiveSolver:
    """A solver that chooses its steps.

    Args:
        name: One of torchdiffeq's ("dopri5"), SciPy's ("scipy_rk45"; those with Jacobians are for small problems), of
            steps of the whole batch's, or torchode's ("torchode_dopri5"), of steps of each sample's own.
        rtol: Tolerated error of a step relative to the state, above 0.
        atol: Tolerated error of a step on top, above 0.
        max_nfe: Most network calls, at least 1; None is no limit.
        t_end: The time next to the data, with noise left there. None is the smallest time that networks know: 0 where
            sigma(0) > 0, else ``sde.t_min``.
        grid: Falling times at which it starts afresh, in place of ``t_end``; None is the two ends alone.

    Raises:
        ValueError: If an option is unknown or out of range, or torchode is missing.
    """

    name: str
    _: KW_ONLY
    rtol: float = 1e-5
    atol: float = 1e-5
    max_nfe: int | None = 10_000
    t_end: float | None = None
    grid: Tensor | None = None

    def __post_init__(self) -> None:
        """Check the options."""
        _check(self.name, ADAPTIVE if type(self) is AdaptiveSolver else [ADAMS], self.max_nfe)
        check_installed(self.name)
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0 and finite, got {value}; try 1e-5")
        if self.t_end is not None and not 0 <= self.t_end < 1:
            raise ValueError(f"t_end must lie in [0, 1), got {self.t_end}; leave it out for the SDE's own")
        if self.grid is not None:
            if self.t_end is not None:
                raise ValueError(
                    f"t_end is for adaptive solvers without a tensor grid, got t_end = {self.t_end}; end the grid there"
                )
            object.__setattr__(self, "grid", check_grid(self.grid))

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The falling times that it stops at on an SDE, float64: the ends, and the data where noise ends before it."""
        if self.grid is not None:
            return self.grid
        onto_data = [] if last_noisy_time(sde) == 0 else [0.0]
        return torch.tensor([sde.t_max, last_noisy_time(sde, self.t_end), *onto_data], dtype=torch.float64)

    def tightened(self, share: float) -> AdaptiveSolver:
        """The same with a share of the tolerance, though not below 1e-13: float64 has no more to give."""
        rtol, atol = (max(share * tolerance, min(tolerance, 1e-13)) for tolerance in (self.rtol, self.atol))
        return replace(self, rtol=rtol, atol=atol)

    def solve(self, slope: Callable[..., Tensor], y: Tensor, start: float, end: float) -> Tensor:
        """The state at ``end`` of dy/du = slope(u, y), which may lie on either side of ``start``.

        Raises:
            NoProgressError: If the tolerance is out of reach.
        """
        return ADAPTIVE[self.name](slope, y, start, end, rtol=self.rtol, atol=self.atol)


@dataclass(frozen=True, eq=False)
class Adams(AdaptiveSolver):
    """``solve_adams``: one network call a step, and steps of each sample's own by its own root mean square error."""

    name: str = ADAMS

    def solve(self, slope: Callable[..., Tensor], y: Tensor, start: float, end: float) -> Tensor:
        """The state at ``end``; see ``AdaptiveSolver.solve``. The slope takes the rows of the batch as well."""

        def rms_error(old: Tensor, new: Tensor, difference: Tensor) -> Tensor:
            off = difference / (self.atol + self.rtol * torch.maximum(old.abs(), new.abs()))
            return off.unsqueeze(1).flatten(1).square().mean(1).sqrt()

        return solve_adams(slope, y, start, end, step_error=rms_error, first_step=_FIRST_STEP, sizes_an_octave=_SIZES)


ODESolver = GridSolver | AdaptiveSolver


def make_ode_solver(
    name: str = ADAMS,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_nfe: int | None = 10_000,
    t_end: float | None = None,
    num_steps: int | None = None,
    grid: str | Tensor = "log_snr",
) -> ODESolver:
    """Build a solver by name, from options of which each kind takes its own.

    Args:
        name: One of ``available_ode_solvers()``.
        rtol: See ``AdaptiveSolver``; unused by grid solvers.
        atol: See ``AdaptiveSolver``; unused by grid solvers.
        max_nfe: Most network calls; None is no limit.
        t_end: See ``AdaptiveSolver``.
        num_steps: See ``GridSolver``; unused by adaptive solvers.
        grid: See ``GridSolver``; adaptive solvers start afresh at the times of a tensor.

    Raises:
        ValueError: If the name is unknown, an option is out of range, or ``t_end`` is given to a grid solver.
    """
    if name in TABLEAUS:
        if t_end is not None:
            raise ValueError(
                f"t_end is for adaptive solvers without a grid, got t_end = {t_end} for {name!r}; end the grid there"
            )
        return GridSolver(name, num_steps, grid=grid, max_nfe=max_nfe)
    times = grid if isinstance(grid, Tensor) else None
    if times is not None:
        check_grid_choice(times, num_steps)
    cls = Adams if name == ADAMS else AdaptiveSolver
    return cls(name, rtol=rtol, atol=atol, max_nfe=max_nfe, t_end=t_end, grid=times)


def _check(name: str, known: Container[str], max_nfe: int | None) -> None:
    if name not in available_ode_solvers():
        raise ValueError(choices_message("ODE solver", name, available_ode_solvers()))
    if name not in known:
        raise ValueError(f"{name!r} is another kind of solver; build it with make_ode_solver({name!r})")
    if max_nfe is not None:
        whole_number("max_nfe", max_nfe, fix="None is no limit")
