"""Karras et al. 2022, Algorithm 2: Heun's method on the probability flow, with churn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from models import Prediction
from runtime.registry import choices_message
from sde_lib import SDE, NoiseStreams, Point, combine, points_at_log_snr, points_of

from .base import States
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler

Variable = Literal["noise_ratio", "t"]


@register_sampler("heun")
class HeunSampler(GridSampler):
    """Heun's method, with or without churn (Karras et al. 2022, Algorithm 2).

    On dy/dr = eps, y = x / alpha and r = sigma / alpha, after raising the noise to r' = (1 + gamma) r:

        y'  = y + sqrt(r'^2 - r^2) noise_std z,
        y_s = y' + (r_s - r') (eps(y', r') + eps(y' + (r_s - r') eps(y', r'), r_s)) / 2

    for any SDE; the paper's time is r. gamma = min(churn / num_steps, sqrt(2) - 1) where churn_min <= r <= churn_max,
    else 0; r' never passes the r of ``sde.t_max``, which networks do not know.

    With ``variable="t"`` it is Heun's method on dx/dt = alpha' x0 + sigma' eps, for paths that are straight in t, as
    those of ``RectifiedFlow``, where r begins at 1e4.

    Order 2 without churn, weak order 1 with it. NFE: 2 a step, 1 for a step onto zero noise: 2 num_steps - 1 there,
    else 2 num_steps plus one with a final denoising. Their grid is "karras".

    Args:
        churn: S_churn, at least 0; 0 is deterministic.
        churn_min: S_tmin, the smallest r with churn.
        churn_max: S_tmax, the largest.
        noise_std: S_noise, above 0; a little above 1 against lost detail.
        variable: "noise_ratio", the paper's r, or "t".
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        churn: float = 0.0,
        churn_min: float = 0.0,
        churn_max: float = math.inf,
        noise_std: float = 1.0,
        variable: Variable = "noise_ratio",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 0 <= churn < math.inf:
            raise ValueError(f"churn must be at least 0 and finite, got {churn}; 0 is deterministic")
        if not 0 <= churn_min <= churn_max:
            raise ValueError(f"churn needs 0 <= churn_min <= churn_max, got {churn_min} and {churn_max}; swap them")
        if not 0 < noise_std < math.inf:
            raise ValueError(f"noise_std must be above 0 and finite, got {noise_std}; try 1")
        if variable not in get_args(Variable):
            raise ValueError(choices_message("variable", str(variable), list(get_args(Variable))))
        self.churn, self.variable = churn, variable
        self.churn_min, self.churn_max = churn_min, churn_max
        self.noise_std = noise_std

    @property
    def follows_flow(self) -> bool:
        """True without churn."""
        return self.churn == 0

    def walk(self, denoise: Denoiser, x: Tensor, points: Sequence[Point], noise: NoiseStreams) -> States:
        """Algorithm 2; the times of the raised noise are found together."""
        raised = self._raised(denoise.sde, points[:-1])
        for i, (t, s) in enumerate(pairwise(points)):
            if i in raised:
                t, t_before = raised[i], t
                # drawn in any case, so that the streams do not depend on the grid's start
                z = noise.normal_like(x)
                std = self.noise_std * math.sqrt(max(t.noise_ratio**2 - t_before.noise_ratio**2, 0.0))
                x = combine((t.alpha / t_before.alpha, x), (t.alpha * std, z))
            kept, length = 1.0, s.t - t.t
            if self.variable == "noise_ratio":
                length = s.alpha * (s.noise_ratio - t.noise_ratio)
                kept = s.alpha / t.alpha
            slope = denoise(x, t)
            euler = combine((kept, x), *self._moves(slope, t, length))
            slope_s = denoise(euler, s)
            moves = [*self._moves(slope, t, 0.5 * length), *self._moves(slope_s, s, 0.5 * length)]
            x = yield combine((kept, x), *moves)

    def _moves(self, prediction: Prediction, at: Point, length: float) -> list[tuple[float, Tensor]]:
        """The terms of a move along the slope at a point."""
        if self.variable == "noise_ratio":
            return [(length, prediction.eps)]
        alpha_rate, sigma_rate = at.rates
        return [(length * alpha_rate, prediction.x0), (length * sigma_rate, prediction.eps)]

    def _raised(self, sde: SDE, points: Sequence[Point]) -> dict[int, Point]:
        """By number, the steps with churn, and where each starts: at its own point if that is the largest known."""
        gamma = min(self.churn / len(points), math.sqrt(2) - 1)
        steps = [i for i, t in enumerate(points) if gamma > 0 and self.churn_min <= t.noise_ratio <= self.churn_max]
        if not steps:
            return {}
        (largest,) = points_of(sde, torch.tensor([sde.t_max], dtype=torch.float64))
        ratios = [min((1 + gamma) * points[i].noise_ratio, largest.noise_ratio) for i in steps]
        found = points_at_log_snr(sde, [-2 * math.log(ratio) for ratio in ratios])
        return {
            i: point if ratio > points[i].noise_ratio else points[i]
            for i, ratio, point in zip(steps, ratios, found, strict=True)
        }
