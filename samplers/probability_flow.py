"""The probability flow ODE (Song et al. 2021, Eq. 13) to any tolerance, down to images and up to latents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from models import CallCounter, Cond, FlowEquation, ScoreModel, count_network_calls, follow_flow
from sde_lib import (
    ADAMS,
    SDE,
    TABLEAUS,
    Adams,
    AdaptiveSolver,
    GridSolver,
    NoiseStreams,
    ODESolver,
    Point,
    make_ode_solver,
    points_of,
)

from .base import States, check_finite
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler
from .start import check_start

# What share of the tolerance encode and decode give each step: errors add up and spread along the way, most where data
# is in separate modes. On mixtures of 2 and of 60 modes, in 2, 3 and 64 dimensions, up and down again was measured to
# be off by up to 77 times the step's tolerance with "adams", and 106 times with "dopri5"; encoding alone, of two narrow
# modes on a VE-SDE, by up to 1,200 times with "adams".
_ROUND_TRIP, _ROUND_TRIP_ADAMS = 0.01, 0.0005


@dataclass(frozen=True)
class FlowResult:
    """An end of the probability-flow ODE.

    Attributes:
        x: From ``encode``, the latent x_T; from ``decode``, the image in the scale of data; [B, ...].
        nfe: How often the network was called.
    """

    x: Float[Tensor, "batch *shape"]
    nfe: int


@register_sampler("probability_flow")
class ProbabilityFlowSampler(GridSampler):
    """The probability-flow ODE, by an adaptive solver or in steps of the grid (Song et al. 2021, Eq. 13).

    It is solved in the scale of the data, y = x / alpha and r = sigma / alpha:

        dy / dr = eps(alpha y, t(r))

    (Song et al. 2020, Eq. 14; Karras et al. 2022, Eq. 1). It is the ODE of Song et al. 2021, Eq. 13, in a form that is
    smooth down to r = 0. It has no noise, so that x_T decides the sample.

    Adaptive solvers choose their own steps from ``sde.t_max`` to ``t_end``, in float64, and need no num_steps; with a
    tensor grid they start afresh at each of its times. With "adams", the default, each sample has steps of its own, by
    the root mean square of its own error, and leaves the batch when it is done: it is the same at any batch size, but
    for the network's rounding. torchode's have such steps too. The steps of torchdiffeq's and SciPy's are the whole
    batch's, those that its worst sample needs: a sample then changes with its batch mates, by about the tolerance.
    Grid solvers make one step of their tableau in r between two times of the grid, in the dtype of x_T. As in every
    ``GridSampler`` the last step onto t = 0, or a final denoising, then gives x0 as the model predicts it.

    ``encode`` and ``decode`` leave that step out: between data at the last noisy time and latents at the first, the
    flow is a bijection. With an adaptive solver, whose steps they take to a hundredth of the tolerance or, of "adams",
    to 0.0005 of it, decoding what was encoded returns the image to within atol + rtol |x0|, unless it lies between two
    modes; with a grid solver, to within the error on the grid.

    Args:
        solver: One of ``available_ode_solvers()``, built from the options below, or a solver with options of its own:
            ``Adams`` (one network call a step, steps of each sample's own), ``AdaptiveSolver`` or ``GridSolver``, of
            which "euler" is DDIM with eta = 0.
        rtol: See ``make_ode_solver``; as what follows, for a solver by name.
        atol: See ``make_ode_solver``, in the scale of data.
        max_nfe: Most network calls that an adaptive solver may spend, at least 1; None is no limit.
        t_end: Where adaptive solvers stop; see ``AdaptiveSolver``.
        num_steps: See ``GridSampler``; taken and unused by adaptive solvers without a tensor grid.
        grid: See ``GridSampler``; its name is unused by adaptive solvers.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If an option is unknown, out of range or not for this solver, or torchode is missing.
    """

    def __init__(
        self,
        *,
        solver: str | ODESolver = ADAMS,
        rtol: float = 1e-5,
        atol: float = 1e-5,
        max_nfe: int | None = 10_000,
        t_end: float | None = None,
        num_steps: int | None = None,
        grid: str | Tensor = "uniform",
        **kwargs: Any,
    ) -> None:
        if isinstance(solver, str):
            # a grid solver's calls are known beforehand
            max_nfe = None if solver in TABLEAUS else max_nfe
            options: dict[str, Any] = {"rtol": rtol, "atol": atol, "max_nfe": max_nfe, "t_end": t_end}
            solver = make_ode_solver(solver, num_steps=num_steps, grid=grid, **options)
        if solver.grid is not None:
            grid = solver.grid
        if isinstance(solver, GridSolver):
            num_steps = solver.num_steps
        elif num_steps is None and solver.grid is None:
            num_steps = 1
        super().__init__(num_steps=num_steps, grid=grid, **kwargs)
        self.solver = solver

    @property
    def follows_flow(self) -> bool:
        """True."""
        return True

    def times(self, sde: SDE) -> Float[Tensor, " points"]:
        """The times this sampler stops at on an SDE, falling, float64: for adaptive solvers, only the ends."""
        return self.solver.times(sde)

    def _on_grid(self, grid: Tensor) -> ProbabilityFlowSampler:
        """A copy that walks down these times; see ``GridSampler.starting_at``."""
        moved = super()._on_grid(grid)
        of_kind = {"num_steps": moved.num_steps} if isinstance(self.solver, GridSolver) else {"t_end": None}
        moved.solver = replace(self.solver, grid=moved.grid, **of_kind)
        return moved

    def walk(
        self, denoise: Denoiser, x: Float[Tensor, "batch *shape"], points: Sequence[Point], noise: NoiseStreams
    ) -> States:
        """Yield the state at each point; see ``GridSampler.walk``."""
        spent = 0
        for t, s in pairwise(points):
            with count_network_calls(denoise.model) as counter:
                counter.calls = spent
                y = _follow(self.solver, denoise, self._enter(x) / t.alpha, (t, s), x.dtype, counter)
            spent = counter.calls
            x = yield (s.alpha * y).to(x.dtype)

    def encode(
        self,
        model: ScoreModel,
        x0: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
    ) -> FlowResult:
        """Follow the ODE from data up to latents; ``decode`` undoes it.

        Args:
            model: Any ScoreModel.
            x0: Data, [B, ...], taken as y at the last noisy time.
            cond: Condition, handed to the model.

        Returns:
            x_T at the first time, where the prior lives, in the dtype of ``x0``.

        Raises:
            ValueError: If x0 is no batch of floating-point samples, or the grid does not fit the SDE.
            FloatingPointError: If x0 or the model's answer is not finite; the message says at which t.
            RuntimeError: If ``max_nfe`` is spent, or the tolerance is out of reach.
        """
        return self._between_ends(model, "x0", x0, cond, upwards=True)

    def decode(
        self,
        model: ScoreModel,
        x_T: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
    ) -> FlowResult:
        """Follow the ODE from latents down to data, without the last denoising of ``sample``; ``encode`` undoes it.

        Args:
            model: Any ScoreModel.
            x_T: Latents at the first time, [B, ...].
            cond: Condition, handed to the model.

        Returns:
            y = x / alpha at the last noisy time, in the dtype of ``x_T``.

        Raises:
            ValueError: If x_T is no batch of floating-point samples, or is noise of another time, or the grid does not
                fit the SDE.
            FloatingPointError: If x_T or the model's answer is not finite; the message says at which t.
            RuntimeError: If ``max_nfe`` is spent, or the tolerance is out of reach.
        """
        return self._between_ends(model, "x_T", x_T, cond, upwards=False)

    def _between_ends(self, model: ScoreModel, name: str, x: Tensor, cond: Cond | None, *, upwards: bool) -> FlowResult:
        if not x.is_floating_point() or x.ndim < 1 or x.shape[0] < 1:
            raise ValueError(
                f"{name} must be a batch of floating-point samples, got {x.dtype} {list(x.shape)}; convert it"
            )
        points = points_of(model.sde, self.times(model.sde))
        if points[-1].sigma == 0:
            points.pop()
        if len(points) < 2:
            raise ValueError("the ODE needs 2 times with noise, the grid has 1; add a time before its last")
        if upwards:
            points.reverse()
        denoise = Denoiser(model, cond)
        with torch.no_grad(), count_network_calls(model) as counter:
            check_finite(x, f"start {name}")
            if not upwards:
                check_start(model.sde, x, points[0])
            y = self._enter(x) if upwards else self._enter(x) / points[0].alpha
            solver = self.solver
            if isinstance(solver, AdaptiveSolver):
                solver = solver.tightened(_ROUND_TRIP_ADAMS if isinstance(solver, Adams) else _ROUND_TRIP)
            for t, s in pairwise(points):
                y = _follow(solver, denoise, y, (t, s), x.dtype, counter)
        return FlowResult(x=(y * points[-1].alpha if upwards else y).to(x.dtype), nfe=counter.calls)

    def _enter(self, x: Tensor) -> Tensor:
        return x.double() if isinstance(self.solver, AdaptiveSolver) else x


def _follow(
    solver: ODESolver, denoise: Denoiser, y: Tensor, ends: tuple[Point, Point], dtype: torch.dtype, counter: CallCounter
) -> Tensor:
    """y at the second end."""
    equation = FlowEquation(denoise.model, denoise.cond, *ends, dtype=dtype, counter=counter, max_nfe=solver.max_nfe)
    return follow_flow(equation, equation.slope, y, solver)
