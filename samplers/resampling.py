"""Time travel: steps back to more noise, and down again, so that a constraint is heard by the whole state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from runtime.options import whole_number
from sde_lib import NoiseStreams, Point, combine

from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import make_sampler


class ResampledSampler(GridSampler):
    """Walks down the grid by another sampler's steps, and goes back up and down again every few steps.

    From the last point with noise, and from every ``jump_length``-th above it, it goes back ``jump_length`` points by
    the SDE's own noise, x_t = a x_s + sqrt(sigma_t^2 - a^2 sigma_s^2) z with a = alpha_t / alpha_s, and walks down
    anew, ``num_resamples`` times in all. Of an exact model this changes no law. With ``ReplaceObserved`` it is RePaint
    (Lugmayr et al. 2022; of its Algorithm 1 line 5 lacks a square root), whose bias falls as 1 / num_resamples. A
    measurement with noise is forgotten by time travel where the state has less than it (docs/inverse_problems.md).

    NFE: about num_steps times num_resamples.

    Args:
        inner: The sampler whose step is taken, or its name; one without memory of earlier steps.
        jump_length: Points of the grid to go back, at least 1.
        num_resamples: How often each stretch is walked, at least 1; 1 is the inner sampler.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If the inner sampler has a memory, or a number is out of range.
    """

    def __init__(
        self,
        *,
        inner: str | GridSampler = "ancestral",
        jump_length: int = 10,
        num_resamples: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        found = make_sampler(inner, num_steps=1) if isinstance(inner, str) else inner
        if not isinstance(found, GridSampler) or type(found).walk is not GridSampler.walk:
            raise ValueError(f"inner must be a sampler of single steps, got {inner}; take ancestral or ddim")
        self.inner = found
        self.jump_length = whole_number("jump_length", jump_length, fix="10 is usual")
        self.num_resamples = whole_number("num_resamples", num_resamples, fix="1 is no time travel")

    def moves(self, points: Sequence[Point]) -> list[tuple[Point, Point]]:
        """The way down, with its jumps back."""
        last_noisy = max(k for k, point in enumerate(points) if point.sigma > 0)
        left = {k: self.num_resamples - 1 for k in range(last_noisy, self.jump_length - 1, -self.jump_length)}
        visits = [0]
        while left.get(visits[-1], 0) or visits[-1] < len(points) - 1:
            here = visits[-1]
            if left.get(here, 0):
                left[here] -= 1
                visits.append(here - self.jump_length)
            else:
                visits.append(here + 1)
        return list(pairwise([points[k] for k in visits]))

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """A step of the inner sampler, or back to more noise."""
        if s.t < t.t:
            return self.inner.step(denoise, x, t, s, noise)
        ratio = s.alpha / t.alpha
        return combine((ratio, x), (math.sqrt(s.sigma**2 - (ratio * t.sigma) ** 2), noise.normal_like(x)))
