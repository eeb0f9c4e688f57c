"""UniPC (Zhao et al. 2023): a predictor and a corrector of any order that share one network call a step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from runtime.registry import choices_message
from sde_lib import NoiseStreams, Point, combine

from .base import States
from .denoiser import Denoiser
from .dpm_solver import half_log_snr_step
from .grid_sampler import GridSampler
from .registry import register_sampler

BFunction = Literal["bh1", "bh2"]


def unipc_weights(h: float, ratios: Sequence[float], *, b_function: BFunction) -> np.ndarray:
    """Weights a_k of the differences D_k = (x0_k - x0) / r_k, times B(h) (Zhao et al. 2023, Eq. 5 and 9, data form).

    They solve  sum_k B(h) a_k r_k^(n-1) = -h n! phi_(n+1)(-h)  for n = 1, 2, ..., in which B cancels. A single a_1 is
    1/2 up to O(h), and the published 1/2 is taken.

    Args:
        h: Length of the step in lambda.
        ratios: r_k = (lambda_k - lambda_t) / h of the points: negative for earlier ones, 1 for the end of the step.
        b_function: "bh1": B = -h; "bh2": B = expm1(-h).

    Returns:
        [len(ratios)].
    """
    b_of_h = -h if b_function == "bh1" else math.expm1(-h)
    if len(ratios) == 1:
        return np.array([0.5 * b_of_h])
    right, phi, factorial = [], math.expm1(-h) / -h - 1, 1
    for n in range(1, len(ratios) + 1):
        right.append(phi * factorial)
        factorial *= n + 1
        phi = phi / -h - 1 / factorial
    powers = np.vander(np.asarray(ratios), increasing=True).T
    return np.linalg.solve(powers, np.array(right))


@register_sampler("unipc")
class UniPCSampler(GridSampler):
    """UniPC-p, multistep, data prediction (Zhao et al. 2023).

    With h, lambda as in DPM-Solver++ and D_k = (x0_k - x0) / r_k:

        x_s = (sigma_s / sigma_t) x_t - alpha_s expm1(-h) x0 - alpha_s B(h) sum_k a_k D_k

    (Zhao et al. 2023, Algorithms 5-8). The predictor sums over p - 1 earlier points. At s the network is called once,
    with the predicted state; the corrector then takes the step again with s among the points, and the next predictor
    uses the same call.

    Order: p + 1 by the corrector, for p = 1, 2, 3; the first steps are of lower order, which shows on grids that start
    further down than usual, where x0 depends on x_t (there p = 3 is held at 3). NFE: num_steps, plus one with a final
    denoising. The last state before it is predicted, not corrected, as published. A state that a hook replaced is not
    corrected.

    Args:
        order: p, in 1, 2, 3.
        b_function: "bh1": B(h) = -h, which they advise without guidance; "bh2": B(h) = expm1(-h), as published code.
        lower_order_final: Let the order fall to 2 and 1 in the last two steps; None: where the grid ends without noise.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If an option is out of range.
    """

    def __init__(
        self,
        *,
        order: int = 2,
        b_function: BFunction = "bh2",
        lower_order_final: bool | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if order not in (1, 2, 3):
            raise ValueError(f"order must be 1, 2 or 3, got {order}; 2 is advised with guidance, 3 without")
        if b_function not in get_args(BFunction):
            raise ValueError(choices_message("b_function", str(b_function), list(get_args(BFunction))))
        self.order = order
        self.b_function: BFunction = b_function
        self.lower_order_final = lower_order_final

    @property
    def follows_flow(self) -> bool:
        """True."""
        return True

    def walk(self, denoise: Denoiser, x: Tensor, points: Sequence[Point], noise: NoiseStreams) -> States:
        """Yield the predicted states; the newest of the past x0's comes first."""
        past: list[tuple[Point, Tensor]] = []
        points[0].check_signal()
        num_steps = len(points) - 1
        lower_final = points[-1].sigma == 0 if self.lower_order_final is None else self.lower_order_final
        start, proposed, order = x, x, 0
        for i, (t, s) in enumerate(pairwise(points)):
            x0 = denoise(x, t).x0
            if i > 0 and x is proposed:
                x = self._step(start, past[:order], t, corrected_by=x0)
            past = [(t, x0), *past[: self.order - 1]]
            order = min(self.order, len(past), num_steps - i if lower_final else self.order)
            start, proposed = x, self._step(x, past[:order], s)
            x = yield proposed

    def _step(
        self, x: Tensor, past: Sequence[tuple[Point, Tensor]], s: Point, corrected_by: Tensor | None = None
    ) -> Tensor:
        """Predict x_s from the past x0's, or correct it by that at s."""
        t, x0 = past[0]
        h = half_log_snr_step(t, s)
        others = [(half_log_snr_step(t, point) / h, value) for point, value in past[1:]]
        if corrected_by is not None:
            others.append((1.0, corrected_by))
        on_x0 = -math.expm1(-h)
        terms = []
        if others:
            weights = unipc_weights(h, [ratio for ratio, _ in others], b_function=self.b_function)
            for weight, (ratio, value) in zip(weights.tolist(), others, strict=True):
                terms.append((-s.alpha * weight / ratio, value))
                on_x0 += weight / ratio
        return combine((s.sigma / t.sigma, x), (s.alpha * on_x0, x0), *terms)
