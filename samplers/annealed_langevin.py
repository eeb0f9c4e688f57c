"""Annealed Langevin dynamics, the sampler of NCSN (Song & Ermon 2019, Algorithm 1; Song & Ermon 2020, Algorithm 1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from runtime.options import whole_number
from sde_lib import NoiseStreams, Point

from .base import States
from .correctors import langevin_step
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler


@register_sampler("annealed_langevin")
class AnnealedLangevinSampler(GridSampler):
    """Annealed Langevin dynamics (Song & Ermon 2019 and 2020).

    At each noise level r of the grid, from the largest to the smallest r_L, ``steps_per_level`` times:

        y <- y + step score(y) + sqrt(2 step) z,   step = step_size r^2 / r_L^2

    (Song & Ermon 2020, Algorithm 1, and the code of Song & Ermon 2019, whose Algorithm 1 prints step / 2 and step),
    then the final denoising. y = x / alpha and r = sigma / alpha, x and sigma for VE; any other SDE is sampled
    as the VE-SDE that it is a rescaling of. On ``Tabulated.ncsn(num_steps=L)``, L steps of the uniform grid are NCSN's
    own L levels.

    Its bias goes to 0 as step_size does and steps_per_level rises: it has no order in num_steps. NFE: steps_per_level
    for each level, plus one for the final denoising or the step onto zero noise.

    Args:
        steps_per_level: T, at least 1; 100 in 2019, 5 in 2020 with 232 levels and more.
        step_size: epsilon, above 0; None is r_L^2 / 5, which is NCSN's 2e-5 at its last level 0.01. At 2 r_L^2 and
            above, the chain diverges.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If a number is out of range.
    """

    # the levels' steps come before the step onto zero noise
    own_last_step = True

    def __init__(self, *, steps_per_level: int = 100, step_size: float | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps_per_level = whole_number("steps_per_level", steps_per_level, fix="NCSN takes 100")
        if step_size is not None and not 0 < step_size < math.inf:
            raise ValueError(f"step_size must be above 0 and finite, got {step_size}; leave it out for r_L^2 / 5")
        self.step_size = step_size

    def walk(self, denoise: Denoiser, x: Tensor, points: Sequence[Point], noise: NoiseStreams) -> States:
        """Yield the state when it is brought to the next level, and at the last level after the steps there."""
        points[0].check_signal()
        last = [point for point in points if point.sigma > 0][-1].noise_ratio
        relative = 0.2 if self.step_size is None else self.step_size / last**2
        if relative >= 2:
            raise ValueError(
                f"step_size must be below 2 r_L^2 = {2 * last**2:.6g}, got {self.step_size}; leave it out for r_L^2 / 5"
            )

        def at_level(x: Tensor, t: Point) -> Tensor:
            for _ in range(self.steps_per_level):
                # of x = alpha y, whose step is alpha^2 that of y
                x = langevin_step(denoise, x, t, relative * t.sigma**2, noise)
            return x

        for t, s in pairwise(points):
            x = at_level(x, t)
            x = s.alpha / t.alpha * x if s.sigma > 0 else s.alpha * denoise(x, t).x0
            if s is points[-1] and s.sigma > 0:
                x = at_level(x, s)
            x = yield x
