"""The inverse of a falling function, by Newton's method inside a bracket."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_MOST_STEPS = 200


@torch.no_grad()
def invert_falling(function: Callable[[Tensor], tuple[Tensor, Tensor]], value: Tensor, start: Tensor) -> Tensor:
    """The u in [0, 1] with f(u) = value, elementwise; values out of reach give the nearer end. Without a gradient.

    Newton's method; the bracket is halved where a step leaves it, or is not half as long as the last.

    Args:
        function: u -> (f(u), f'(u)), float64; f falls, and may be infinite at 0.
        value: Values, float64.
        start: First guesses, in [0, 1].

    Returns:
        float64, the shape of ``value``.
    """
    low, high, step = torch.zeros_like(value), torch.ones_like(value), torch.ones_like(value)
    at_zero, at_one = function(low)[0], function(high)[0]
    out_of_reach = (value >= at_zero) | (value <= at_one)
    rounding = 16 * torch.finfo(torch.float64).eps * value.abs().clamp(min=1.0)
    u = start
    for _ in range(_MOST_STEPS):
        found, rate = function(u)
        low, high = torch.where(found >= value, u, low), torch.where(found <= value, u, high)
        newton = u + (value - found) / rate
        good = (newton >= low) & (newton <= high) & ((newton - u).abs() <= 0.5 * step)
        done = (found - value).abs() <= rounding
        # at the end the last digits are Newton's, too
        following = torch.where(good, newton, torch.where(done, u, 0.5 * (low + high)))
        u, step = following, (following - u).abs()
        if bool((done | out_of_reach).all()):
            break
    return torch.where(value >= at_zero, 0.0, torch.where(value <= at_one, 1.0, u))
