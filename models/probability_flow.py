"""The probability-flow ODE, dy / dr = eps, and its solution; for samplers and for likelihoods."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import GridSolver, NoProgressError, ODESolver, Point, expand_like

from .condition import Cond
from .score_model import CallCounter, ScoreModel

# Adaptive solvers step in asinh(r / _KNEE): a step then is a share of r where r is large and, unlike one in log r, not
# ever smaller towards r = 0. With dopri5 at 1e-5 that halves the network calls of steps in r on the way down, at equal
# error, for VP, cosine and VE; anything from 0.1 to 1 times the data's spread does nearly as well.
_KNEE = 0.3


@dataclass
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

    Attributes:
        t: The times that were asked for last, [B].
    """

    model: ScoreModel
    cond: Cond | None
    start: Point
    end: Point
    _: KW_ONLY
    dtype: torch.dtype
    counter: CallCounter
    max_nfe: int | None

    def __post_init__(self) -> None:
        self.t = torch.tensor([self.start.t], dtype=torch.float64)

    def slope(
        self, noise_ratio: Tensor, y: Float[Tensor, "batch *shape"], samples: Tensor | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """eps at r, [] or [B], in the dtype of y; of ``samples`` alone, if not of all.

        Raises:
            RuntimeError: If ``max_nfe`` is spent.
            FloatingPointError: If eps is not finite; the message says at which t.
        """
        self.move_to(noise_ratio, y)
        x = expand_like(self.model.sde.alpha(self.t), y) * y
        return self.ask(x.to(self.dtype), samples).to(y.dtype)

    def move_to(self, noise_ratio: Tensor, y: Tensor) -> None:
        """Set ``t``, [B], to that of r, and refuse to go on if the calls are spent."""
        if self.max_nfe is not None and self.counter.calls >= self.max_nfe:
            raise RuntimeError(
                f"max_nfe = {self.max_nfe} network calls are spent at t = {self.where():.6g}, on the way to "
                f"t = {self.end.t:.6g}; raise max_nfe, or rtol and atol, or take fewer steps"
            )
        self.t = self._time_of(noise_ratio).to(y.device).expand(len(y))

    def ask(self, x: Float[Tensor, "batch *shape"], samples: Tensor | None = None) -> Float[Tensor, "batch *shape"]:
        """The model's eps at ``t``, checked; of ``samples`` of the condition's batch, if not of all."""
        cond = self.cond if self.cond is None or samples is None else self.cond[samples]
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
    equation: FlowEquation, slope: Callable[..., Tensor], y: Float[Tensor, "batch *shape"], solver: ODESolver
) -> Float[Tensor, "batch *shape"]:
    """The state at the equation's end.

    Args:
        equation: Says from where to where.
        slope: d state / dr as a function of r, [] or [B], the state and, of ``Adams``, the samples that are left;
            ``equation.slope``, or one that adds to it.
        y: The state at the start, [B, ...].
        solver: The solver; one of a grid makes one step.

    Raises:
        RuntimeError: If the tolerance is out of reach.
    """
    start, end = equation.start.noise_ratio, equation.end.noise_ratio
    if isinstance(solver, GridSolver):
        return solver.step(slope, y, start, end)
    u_start, u_end = (math.asinh(noise_ratio / _KNEE) for noise_ratio in (start, end))

    def in_u(u: Tensor, y: Tensor, *samples: Tensor) -> Tensor:
        # a solver that looks for its first step may try one past the end
        u = u.clamp(min(u_start, u_end), max(u_start, u_end))
        rate = _KNEE * u.cosh()
        return (expand_like(rate, y) if u.ndim else rate.to(y.device)) * slope(_KNEE * u.sinh(), y, *samples)

    try:
        return solver.solve(in_u, y, u_start, u_end)
    except NoProgressError as error:
        raise RuntimeError(
            f"{solver.name} gave up at t = {equation.where():.6g}: {' '.join(str(error).split())}; "
            "raise rtol and atol, or choose another solver"
        ) from error
