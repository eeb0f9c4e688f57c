"""An Adams method with variable steps: one slope a step, for slopes that are costly and not quite smooth."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .ode_solvers import NoProgressError, Slope
from .shapes import combine

# error(old, new, difference): what a step is off by, in units of what is tolerated, where ``difference`` is that of the
# results of two orders; above 1, or not a number, the step is taken again, shorter
StepError = Callable[[Tensor, Tensor, Tensor], float]

_HISTORY = 3
# the error aimed at is 0.85^4, half of what is tolerated: a step that is taken again costs as much as one that is not
_SAFETY = 0.85
_SHORTEST, _LONGEST, _LONGEST_AT_FIRST = 0.3, 1.5, 2.0


def quadrature_weights(nodes: Sequence[float], start: float, end: float) -> list[float]:
    """The weights w with sum_i w_i p(nodes_i) = integral of p from start to end, p a polynomial of degree < len(nodes).

    Args:
        nodes: Distinct.
        start: Lower end; upper, if it lies above ``end``.
        end: The other end.
    """
    scale = max(abs(end - start), *(abs(node - start) for node in nodes))
    powers = np.arange(len(nodes))
    matrix = ((np.asarray(nodes, dtype=np.float64) - start) / scale)[None, :] ** powers[:, None]
    integrals = ((end - start) / scale) ** (powers + 1) / (powers + 1)
    return (np.linalg.solve(matrix, integrals) * scale).tolist()


def solve_adams(
    slope: Slope, y: Tensor, start: float, end: float, *, step_error: StepError, first_step: float = 1e-3
) -> Tensor:
    """dy/du = slope(u, y) from ``start`` to ``end`` by predictor, evaluation and corrector, one slope a step:

        p = y_n + integral of the polynomial through the last k slopes,
        y_n+1 = y_n + integral of the polynomial through these and slope(u_n+1, p),   k <= 3

    (Adams-Bashforth of order k, Adams-Moulton of order k + 1; Hairer, Norsett & Wanner 1993, Sections III.1 and III.5,
    with the slope at p kept, "PEC"). The error of a step is estimated by what the corrector of order k gives instead.
    Among equal steps all slopes weigh the same, so that what oscillates faster than the steps averages out.

    Args:
        slope: The equation.
        y: State at ``start``, [B, ...].
        start: Where to start.
        end: Where to end, on either side.
        step_error: What a step is off by, in units of what is tolerated; called right after the slope at its end.
        first_step: Size of the first step, above 0; it is taken with the lowest order.

    Returns:
        The state at ``end``.

    Raises:
        NoProgressError: If the steps become too small.
    """
    sign = math.copysign(1.0, end - start)
    u, step, rejected = start, first_step, 0
    nodes, slopes = [u], [slope(_scalar(u), y)]
    while u != end:
        if step < 1e-12 * abs(end - start):
            raise NoProgressError("the steps became too small")
        left = abs(end - u)
        # two equal steps, where a sliver would be left for the last
        target = end if step >= left else u + sign * (0.5 * left if 2 * step > left else step)
        size, order = abs(target - u), len(nodes)
        predicted = combine((1.0, y), *zip(quadrature_weights(nodes, u, target), slopes, strict=True))
        at_target = [slope(_scalar(target), predicted), *slopes]
        high = quadrature_weights([target, *nodes], u, target)
        low = [*quadrature_weights([target, *nodes[:-1]], u, target), 0.0]
        corrected = combine((1.0, y), *zip(high, at_target, strict=True))
        difference = combine(*((a - b, k) for a, b, k in zip(high, low, at_target, strict=True)))
        error = step_error(y, corrected, difference)
        share = _SAFETY * max(error, 1e-10) ** (-1 / (order + 1)) if math.isfinite(error) else 0.0
        if error <= 1:
            u, y, rejected = target, corrected, 0
            nodes, slopes = [u, *nodes][:_HISTORY], at_target[:_HISTORY]
            step = size * min(share, _LONGEST if order == _HISTORY else _LONGEST_AT_FIRST)
        else:
            rejected += 1
            step = size * min(max(share, _SHORTEST), 0.9)
            # slopes from across a kink mislead
            if rejected == 3:
                nodes, slopes = nodes[:1], slopes[:1]
    return y


def _scalar(u: float) -> Tensor:
    return torch.tensor(u, dtype=torch.float64)
