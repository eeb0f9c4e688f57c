"""DPM-Solver++ (Lu et al. 2022b): exponential integrators of the probability flow in log-SNR, predicting data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

from torch import Tensor

from runtime.registry import choices_message
from sde_lib import NoiseStreams, Point, combine, points_at_log_snr

from .base import States
from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler

Variant = Literal["1", "2M", "2S", "3M"]
Correction = Literal["published", "exact"]


def half_log_snr_step(t: Point, s: Point) -> float:
    """h = lambda_s - lambda_t with Lu et al.'s lambda = log(alpha / sigma), half of the log-SNR."""
    return 0.5 * (s.log_snr - t.log_snr)


def multistep_weights(
    h: float, past_steps: Sequence[float], *, rate: float = 1.0, correction: Correction = "exact"
) -> list[float]:
    """Weights of x0, now and at earlier points, in  integral_0^h rate exp(-rate (h - u)) x0(u) du.

    x0(u) is the polynomial through the points. "published" weights differ from the integral: of two points, the line is
    taken at h / 2, which is of the same order; of three, the square term is halved, which costs an order.

    Args:
        h: Length of the step in lambda.
        past_steps: Lengths of the steps before, the newest first; at most 2.
        rate: 1 for the probability flow, 2 for the reverse SDE.
        correction: "exact" or "published".

    Returns:
        One weight a point, the newest first.
    """
    zeroth = -math.expm1(-rate * h)
    if not past_steps:
        return [zeroth]
    exact = correction == "exact"
    first, h0 = h - zeroth / rate, past_steps[0]
    if len(past_steps) == 1:
        on_slope = (first if exact else 0.5 * h * zeroth) / h0
        return [zeroth + on_slope, -on_slope]
    h1 = past_steps[1]
    second = h**2 - 2 * first / rate
    on_curvature = (first * h0 + (1.0 if exact else 0.5) * second) / (h0 + h1)
    newer, older = (first + on_curvature) / h0, -on_curvature / h1
    return [zeroth + newer, older - newer, -older]


@register_sampler("dpm_solver_pp")
class DPMSolverPPSampler(GridSampler):
    """DPM-Solver++, multi- or singlestep, and its SDE form (Lu et al. 2022b).

    With lambda = log(alpha / sigma), h = lambda_s - lambda_t:

        x_s = (sigma_s / sigma_t) x_t + alpha_s integral_0^h exp(u - h) x0(u) du     (Lu et al. 2022b, Eq. 8),

    where x0(u) is the network's x0 at t for "1" (which is DDIM), and is continued along the step

    - for "2M" by the x0 of one earlier step (Algorithm 2);
    - for "2S" by one more call in the middle of the step, at lambda_t + h / 2 (Algorithm 1);
    - for "3M" by the x0 of two earlier steps (the authors' code; Lu et al. 2022a, B.2, for the expansion).

    ``stochastic`` solves the reverse SDE instead (Section 5.3, "SDE-DPM-Solver++"):

        x_s = (sigma_s / sigma_t) exp(-h) x_t + alpha_s integral_0^h 2 exp(2 (u - h)) x0(u) du
              + sigma_s sqrt(1 - exp(-2h)) z,

    of which "1" is ancestral sampling with the small variance.

    Order: 1, 2, 2 and 3; with noise, weak order 1. A multistep variant begins with a step of order 1, which does not
    show where x0 barely depends on x_t, at the start of an ordinary grid, but holds "3M" at order 2 on a grid that
    starts further down; ``warm_start`` takes that step by "2S". NFE: num_steps, twice that for "2S" except for a step
    onto zero noise, one more with ``warm_start``, and one more with a final denoising.

    Args:
        variant: "1", "2M", "2S" or "3M".
        stochastic: Solve the SDE; not for "2S".
        correction: "exact" integrates the polynomial through the x0's; "published" takes the weights of the authors'
            code, in which "2M" reads the line at h / 2, and "3M" halves the square term and so falls to order 2. None
            is "published" for "2M" and "exact" for "3M".
        lower_order_final: Let the order fall to 2 and 1 in the last two steps; None: with fewer than 15 steps, as
            published.
        warm_start: Begin "3M" with a step of "2S"; not with noise.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If a name is unknown, or two options exclude each other.
    """

    def __init__(
        self,
        *,
        variant: Variant = "2M",
        stochastic: bool = False,
        correction: Correction | None = None,
        lower_order_final: bool | None = None,
        warm_start: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        # "1" read from a command line is a number
        name = str(variant).upper()
        if name not in get_args(Variant):
            raise ValueError(choices_message("variant of DPM-Solver++", str(variant), list(get_args(Variant))))
        if correction not in (None, *get_args(Correction)):
            raise ValueError(choices_message("correction", str(correction), list(get_args(Correction))))
        if stochastic and name == "2S":
            raise ValueError("stochastic needs variant '1', '2M' or '3M', got '2S'; take '2M'")
        if warm_start and (stochastic or name != "3M"):
            raise ValueError(f"warm_start is for variant '3M' without noise, got {name!r}; leave warm_start out")
        self.variant = name
        self.stochastic = stochastic
        self.correction: Correction = correction or ("published" if name == "2M" else "exact")
        self.lower_order_final = lower_order_final
        self.warm_start = warm_start

    @property
    def follows_flow(self) -> bool:
        """True without noise."""
        return not self.stochastic

    def walk(self, denoise: Denoiser, x: Tensor, points: Sequence[Point], noise: NoiseStreams) -> States:
        """Algorithms 1 and 2; the newest of the past x0's comes first."""
        past: list[tuple[Point, Tensor]] = []
        if self.variant != "1":
            points[0].check_signal()
        num_steps = len(points) - 1
        lower_final = num_steps < 15 if self.lower_order_final is None else self.lower_order_final
        singlesteps = num_steps if self.variant == "2S" else int(self.warm_start and num_steps > 1)
        # half way in log-SNR
        centers = [0.5 * (t.log_snr + s.log_snr) for t, s in pairwise(points[: singlesteps + 1])]
        middles = points_at_log_snr(denoise.sde, centers)
        for i, (t, s) in enumerate(pairwise(points)):
            past = [(t, denoise(x, t).x0), *past[:2]]
            if i < singlesteps:
                # Algorithm 1 with r = 1/2: the x0 of the middle stands for the whole step
                x_middle = self._multistep(x, past[:1], middles[i])
                x = yield self._multistep(x, [(t, denoise(x_middle, middles[i]).x0)], s)
                continue
            order = min(int(self.variant[0]), len(past), num_steps - i if lower_final else 3)
            x_s = self._multistep(x, past[:order], s)
            if self.stochastic:
                std = s.sigma * math.sqrt(-math.expm1(-2 * half_log_snr_step(t, s)))
                x_s = x_s + std * noise.normal_like(x)
            x = yield x_s

    def _multistep(self, x: Tensor, past: Sequence[tuple[Point, Tensor]], s: Point) -> Tensor:
        """Eq. 8 with the polynomial through the past x0's; the mean, where there is noise."""
        t = past[0][0]
        h = half_log_snr_step(t, s)
        past_steps = [half_log_snr_step(older, newer) for (newer, _), (older, _) in pairwise(past)]
        weights = multistep_weights(h, past_steps, rate=2 if self.stochastic else 1, correction=self.correction)
        on_x = s.sigma / t.sigma * (math.exp(-h) if self.stochastic else 1.0)
        return combine((on_x, x), *((s.alpha * weight, x0) for weight, (_, x0) in zip(weights, past, strict=True)))
