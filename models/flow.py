"""The equation of the probability flow, dy / dr = eps, and the way along it; for samplers and for likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.registry import choices_message
from runtime.whole_numbers import whole_number
from sde_lib import (
    ADAMS,
    ADAPTIVE,
    TABLEAUS,
    NoProgressError,
    Point,
    available_ode_solvers,
    check_installed,
    expand_like,
    solve_adams,
)

from .condition import Cond
from .score_model import CallCounter, ScoreModel

# Adaptive solvers step in asinh(r / _KNEE): a step then is a share of r where r is large and, unlike one in log r, not
# ever smaller towards r = 0. With dopri5 at 1e-5 that halves the network calls of steps in r on the way down, at equal
# error, for VP, cosine and VE; anything from 0.1 to 1 times the data's spread does nearly as well.
_KNEE = 0.3
# the first step of "adams", in the same: of 1e-2 and 1e-3, both well below the tolerance, the longer saves 7 calls
_FIRST_STEP = 1e-2
# how many of its step sizes are in a factor of 2: a network's rounding, other in another batch, must not move the steps
_SIZES = 4


class FlowEquation:
    """dy / dr = eps(alpha y, t(r)) between two points, y = x / alpha and r = sigma / alpha.

    Its network calls are limited and the network's answers checked.

    Args:
        model: The model.
        cond: Its condition, or None.
        start: Where the way begins.
        end: Where it ends, on either side.
        dtype: What the model is asked in.
        counter: Counts the model's calls.
        max_nfe: How many calls ``counter`` may come to; None is no limit.
    """

    def __init__(
        self,
        model: ScoreModel,
        cond: Cond | None,
        start: Point,
        end: Point,
        *,
        dtype: torch.dtype,
        counter: CallCounter,
        max_nfe: int | None,
    ) -> None:
        self.model, self.cond = model, cond
        self.start, self.end = start, end
        self.dtype, self.counter, self.max_nfe = dtype, counter, max_nfe
        self.t = torch.tensor([start.t], dtype=torch.float64)

    def slope(
        self, noise_ratio: Tensor, y: Float[Tensor, "batch *shape"], rows: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """eps at r, [] or [B], in the dtype of y; of the samples ``rows`` alone, if not of all.

        Raises:
            RuntimeError: If ``max_nfe`` is spent.
            FloatingPointError: If eps is not finite; the message says at which t.
        """
        self.move_to(noise_ratio, y)
        x = expand_like(self.model.sde.alpha(self.t), y) * y
        return self.ask(x.to(self.dtype), rows).to(y.dtype)

    def move_to(self, noise_ratio: Tensor, y: Tensor) -> None:
        """Set ``t``, [B], to that of r, and refuse to go on if the calls are spent."""
        if self.max_nfe is not None and self.counter.calls >= self.max_nfe:
            raise RuntimeError(
                f"max_nfe = {self.max_nfe} network calls are spent at t = {self.where():.6g}, on the way to "
                f"t = {self.end.t:.6g}; raise max_nfe, or rtol and atol, or take fewer steps"
            )
        self.t = self._time_of(noise_ratio).to(y.device).expand(len(y))

    def ask(self, x: Float[Tensor, "batch *shape"], rows: Tensor | None = None) -> Float[Tensor, "batch *shape"]:
        """The model's eps at ``t``, checked; of the samples ``rows`` of the condition's batch, if not of all."""
        cond = self.cond if self.cond is None or rows is None else self.cond[rows]
        eps = self.model(x, self.t, cond=cond).eps
        if not bool(torch.isfinite(eps.sum())):
            wrong = ~torch.isfinite(eps).unsqueeze(1).flatten(1).all(1)
            if bool(wrong.any()):
                raise FloatingPointError(
                    f"the model's eps is not finite at t = {float(self.t[wrong][0]):.6g}; look at its output there"
                )
        return eps

    def _time_of(self, noise_ratio: Tensor) -> Tensor:
        """t(r), [1] or [B]."""
        low, high = sorted(point.noise_ratio for point in (self.start, self.end))
        # what rounding puts past an end is that end
        noise_ratio = noise_ratio.double().reshape(-1).clamp(low, high)
        t = self.model.sde.time_from_log_snr(-2 * noise_ratio.log())
        for point in (self.start, self.end):
            t = torch.where(noise_ratio == point.noise_ratio, point.t, t)
        return t

    def where(self) -> float:
        """The time that was asked for last; of several, the one with the longest way to go."""
        return float(self.t[(self.t - self.end.t).abs().argmax()])


def follow_flow(
    equation: FlowEquation,
    slope: Callable[..., Tensor],
    y: Float[Tensor, "batch *shape"],
    *,
    solver: str,
    rtol: float,
    atol: float,
) -> Float[Tensor, "batch *shape"]:
    """The state at the equation's end.

    Args:
        equation: Says from where to where.
        slope: d state / dr as a function of r, [] or [B], the state and, of "adams", the rows of the batch that are
            left; ``equation.slope``, or one that adds to it.
        y: The state at the start, [B, ...].
        solver: One of ``available_ode_solvers()``; those of a tableau make one step.
        rtol: Tolerated error relative to the state, for adaptive solvers.
        atol: Tolerated error on top.

    Raises:
        RuntimeError: If the tolerance is out of reach.
    """
    start, end = equation.start.noise_ratio, equation.end.noise_ratio
    if solver in TABLEAUS:
        return TABLEAUS[solver].step(slope, y, start, end)
    u_start, u_end = (math.asinh(noise_ratio / _KNEE) for noise_ratio in (start, end))

    def in_u(u: Tensor, y: Tensor, *rows: Tensor) -> Tensor:
        # a solver that looks for its first step may try one past the end
        u = u.clamp(min(u_start, u_end), max(u_start, u_end))
        rate = _KNEE * u.cosh()
        return (expand_like(rate, y) if u.ndim else rate.to(y.device)) * slope(_KNEE * u.sinh(), y, *rows)

    def rms_error(old: Tensor, new: Tensor, difference: Tensor) -> Tensor:
        off = difference / (atol + rtol * torch.maximum(old.abs(), new.abs()))
        return off.unsqueeze(1).flatten(1).square().mean(1).sqrt()

    try:
        if solver == ADAMS:
            return solve_adams(
                in_u, y, u_start, u_end, step_error=rms_error, first_step=_FIRST_STEP, sizes_an_octave=_SIZES
            )
        return ADAPTIVE[solver](in_u, y, u_start, u_end, rtol=rtol, atol=atol)
    except NoProgressError as error:
        raise RuntimeError(
            f"{solver} gave up at t = {equation.where():.6g}: {' '.join(str(error).split())}; "
            "raise rtol and atol, or choose another solver"
        ) from error


def check_ode_options(solver: str, *, rtol: float, atol: float, max_nfe: int | None) -> None:
    """Refuse a solver that is unknown or not installed, and numbers out of range.

    Args:
        solver: One of ``available_ode_solvers()``.
        rtol: Above 0 and finite.
        atol: Above 0 and finite.
        max_nfe: At least 1, or None.

    Raises:
        ValueError: In one line; an unknown solver lists the choices.
    """
    if solver not in available_ode_solvers():
        raise ValueError(choices_message("ODE solver", solver, available_ode_solvers()))
    check_installed(solver)
    for name, value in (("rtol", rtol), ("atol", atol)):
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be above 0 and finite, got {value}; try 1e-5")
    if max_nfe is not None:
        whole_number("max_nfe", max_nfe, fix="None is no limit")
