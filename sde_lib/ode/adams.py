"""An Adams method of one slope a step, each sample with its own; for slopes that are costly and not quite smooth."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ..shapes import expand_like
from .solvers import NoProgressError

# slope(u, y, rows): of some samples, u is [A], y [A, ...], and rows [A] says which of the batch they are
RowSlope = Callable[[Tensor, Tensor, Tensor], Tensor]
# error(old, new, difference): [A], what each sample's step is off by, in units of what is tolerated; ``difference`` is
# that of the results of two orders; above 1, or not a number, the step is taken again, shorter
StepError = Callable[[Tensor, Tensor, Tensor], Tensor]

_HISTORY = 3
# the error aimed at is 0.7^4, a quarter of what is tolerated: where slopes are not smooth, errors scatter as much from
# step to step, and a step that is taken again costs as much as one that is not
_SAFETY = 0.7
_SHORTEST, _LONGEST, _LONGEST_AT_FIRST = 0.3, 1.5, 2.0


def quadrature_weights(
    nodes: Float[Tensor, "batch nodes"], start: Float[Tensor, " batch"], end: Float[Tensor, " batch"]
) -> Float[Tensor, "batch nodes"]:
    """The weights w with sum_i w_i p(nodes_i) = integral of p from start to end for polynomials p of degree below n.

    Args:
        nodes: n distinct numbers a row, [B, n], float64.
        start: Lower end, [B]; upper, where it lies above ``end``.
        end: The other end, [B].
    """
    nodes, length = nodes - start[:, None], (end - start)[:, None]
    scale = torch.maximum(nodes.abs().amax(1, keepdim=True), length.abs())
    powers = torch.arange(nodes.shape[1], dtype=torch.float64)
    matrix = (nodes / scale)[:, None, :] ** powers[:, None]
    integrals = (length / scale) ** (powers + 1) / (powers + 1)
    return torch.linalg.solve(matrix, integrals) * scale


def solve_adams(
    slope: RowSlope,
    y: Float[Tensor, "batch *shape"],
    start: float,
    end: float,
    *,
    step_error: StepError,
    first_step: float = 1e-3,
    sizes_an_octave: int | None = None,
) -> Float[Tensor, "batch *shape"]:
    """dy/du = slope(u, y) from ``start`` to ``end`` by predictor, evaluation and corrector, one slope a step:

        p = y_n + integral of the polynomial through the last k slopes,
        y_n+1 = y_n + integral of the polynomial through these and slope(u_n+1, p),   k <= 3

    (Adams-Bashforth of order k, Adams-Moulton of order k + 1; Hairer, Norsett & Wanner 1993, Sections III.1 and III.5,
    with the slope at p kept, "PEC"). The error of a step is estimated by what the corrector of order k gives instead.
    Among equal steps all slopes weigh the same, so that what oscillates faster than the steps averages out.

    Each sample has steps of its own, whatever its batch mates need, and leaves the batch when it is done.

    Args:
        slope: The equation.
        y: State at ``start``, [B, ...].
        start: Where to start.
        end: Where to end, on either side.
        step_error: What steps are off by, in units of what is tolerated; called right after the slope at their ends.
        first_step: Size of the first step, above 0; it is taken with the lowest order.
        sizes_an_octave: Change step sizes by powers of 2^(1 / this) alone, rounded down; None changes them freely. A
            network rounds otherwise in another batch. With few sizes that moves no step, but for the rare one whose
            error is at the edge of two sizes. Freely chosen steps all move a little, and where slopes are not quite
            smooth they drift apart, and the results with them by as much as the steps are off.

    Returns:
        The state at ``end``.

    Raises:
        NoProgressError: If the steps become too small.
    """
    result = torch.empty_like(y)
    track = _Track(len(y), start, end, first_step, sizes_an_octave)
    rows = torch.arange(len(y), device=y.device)
    slopes = [slope(track.nodes[:, 0], y, rows), *(torch.zeros_like(y) for _ in range(_HISTORY - 1))]
    while len(rows):
        target = track.target()
        predicted = y + _weigh(track.weights(target, track.nodes), slopes)
        at_target = [slope(target, predicted, rows), *slopes]
        nodes = torch.cat([target[:, None], track.nodes], 1)
        high, low = track.weights(target, nodes, more=1), track.weights(target, nodes)
        corrected = y + _weigh(high, at_target)
        error = step_error(y, corrected, _weigh(high - low, at_target)).cpu()
        taken = error <= 1
        y, *slopes = (
            torch.where(expand_like(taken, old, name="taken").bool(), new, old)
            for new, old in zip((corrected, *at_target), (y, *slopes), strict=False)
        )
        done = track.advance(target, error, taken)
        if bool(done.any()):
            gone = done.to(y.device)
            result[rows[gone]] = y[gone]
            rows, y, slopes = rows[~gone], y[~gone], [k[~gone] for k in slopes]
            track.drop(done)
    return result


class _Track:
    """The time of each sample, [A], its number of usable slopes and the length of its next step; on the CPU."""

    def __init__(
        self, num_samples: int, start: float, end: float, first_step: float, sizes_an_octave: int | None
    ) -> None:
        self.sizes_an_octave = sizes_an_octave
        self.end, self.shortest = end, 1e-12 * abs(end - start)
        self.sign = 1.0 if end > start else -1.0
        # where the last slopes were taken, newest first
        self.nodes = torch.full((num_samples, _HISTORY), start, dtype=torch.float64)
        self.step = torch.full((num_samples,), first_step, dtype=torch.float64)
        self.order = torch.ones(num_samples, dtype=torch.int64)
        self.rejected = torch.zeros(num_samples, dtype=torch.int64)

    def target(self) -> Tensor:
        """The ends of the next steps."""
        if bool((self.step < self.shortest).any()):
            raise NoProgressError("the steps became too small")
        at = self.nodes[:, 0]
        left = (self.end - at).abs()
        # two equal steps, where a sliver would be left for the last
        next_one = at + self.sign * torch.where(2 * self.step > left, 0.5 * left, self.step)
        return torch.where(self.step >= left, self.end, next_one)

    def weights(self, target: Tensor, nodes: Tensor, *, more: int = 0) -> Tensor:
        """Weights of the slopes at nodes [A, n], of which each sample uses as many as its order, and ``more``."""
        weights = torch.zeros_like(nodes)
        for order in self.order.unique().tolist():
            mine, used = self.order == order, order + more
            weights[mine, :used] = quadrature_weights(nodes[mine, :used], self.nodes[mine, 0], target[mine])
        return weights

    def advance(self, target: Tensor, error: Tensor, taken: Tensor) -> Tensor:
        """Choose the next steps; say which samples are at the end."""
        error = error.double()
        share = torch.where(error.isfinite(), _SAFETY * error.clamp(min=1e-10) ** (-1 / (self.order + 1)), 0.0)
        longest = torch.where(self.order == _HISTORY, _LONGEST, _LONGEST_AT_FIRST)
        share = torch.where(taken, torch.minimum(share, longest), share.clamp(_SHORTEST, 0.9))
        if self.sizes_an_octave:
            share = 2 ** (torch.floor(self.sizes_an_octave * share.log2()) / self.sizes_an_octave)
        self.step = (target - self.nodes[:, 0]).abs() * share
        self.nodes = torch.where(taken[:, None], torch.cat([target[:, None], self.nodes[:, :-1]], 1), self.nodes)
        self.rejected = torch.where(taken, 0, self.rejected + 1)
        self.order = torch.where(taken, (self.order + 1).clamp(max=_HISTORY), self.order)
        # slopes from across a kink mislead
        self.order = torch.where(self.rejected == 3, 1, self.order)
        return self.nodes[:, 0] == self.end

    def drop(self, done: Tensor) -> None:
        """Forget samples."""
        for name in ("nodes", "step", "order", "rejected"):
            setattr(self, name, getattr(self, name)[~done])


def _weigh(weights: Tensor, slopes: list[Tensor]) -> Tensor:
    """sum_j weights[:, j] slopes[j]."""
    total = torch.zeros_like(slopes[0])
    for column, k in zip(weights.unbind(1), slopes, strict=True):
        total.addcmul_(expand_like(column, k), k)
    return total
