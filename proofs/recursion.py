"""Mean and covariance of Langevin samplers on the Gaussian, written from the papers with plain alpha and sigma.

All is done in the two directions in which the Gaussian's numbers are independent, the eigenvectors of its covariance:
every matrix of these samplers is diagonal there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import torch
from jaxtyping import Float
from numpy import ndarray
from torch import Tensor

from sde_lib import SDE, Point, points_of

from .oracles import GAUSSIAN, central_moments

_mean, _cov, _ = (moment.numpy() for moment in central_moments(GAUSSIAN))
# variances, and the directions as columns
VAR, AXES = np.linalg.eigh(_cov)
MEAN = AXES.T @ _mean


@dataclass
class Law:
    """Mean and variance along the two axes, on their way down a grid.

    Attributes:
        mean: Means.
        var: Variances.
        slack: How much the variances may be off because norms of finitely many numbers vary, times sqrt(numbers).
    """

    mean: Float[ndarray, "2"]
    var: Float[ndarray, "2"]
    slack: Float[ndarray, "2"] = field(default_factory=lambda: np.zeros(2))

    def move(self, gain: ndarray, offset: ndarray, noise_var: float) -> None:
        """X <- gain x + offset + sqrt(noise_var) z."""
        self.mean = gain * self.mean + offset
        self.var = gain**2 * self.var + noise_var
        self.slack = gain**2 * self.slack

    def towards(self, mean: ndarray, var: ndarray, step: float) -> None:
        """X <- x + step score + sqrt(2 step) z with the score of N(mean, var)."""
        self.move(1 - step / var, step / var * mean, 2 * step)

    def denoise(self, alpha: float, sigma: float) -> None:
        """X <- E[x0 | x]."""
        gain = alpha * VAR / (alpha**2 * VAR + sigma**2)
        self.move(gain, MEAN - gain * alpha * MEAN, 0.0)


def noisy_points(sde: SDE, times: Tensor) -> list[Point]:
    """The points of a grid that have noise; samplers end by predicting x0 at the last of them."""
    return [point for point in points_of(sde, times) if point.sigma > 0]


def _predict(law: Law, predictor: str, t: Point, s: Point) -> None:
    power = t.alpha**2 * VAR + t.sigma**2
    a = t.alpha / s.alpha
    forward_var = t.sigma**2 - a**2 * s.sigma**2
    if predictor == "none":
        return
    if predictor == "ancestral":
        # Ho et al. 2020, Eq. 7, with x0 = m + alpha v (x - alpha m) / power
        on_x0, on_x = s.alpha * forward_var / t.sigma**2, a * s.sigma**2 / t.sigma**2
        gain = on_x0 * t.alpha * VAR / power
        law.move(gain + on_x, (on_x0 - gain * t.alpha) * MEAN, forward_var * s.sigma**2 / t.sigma**2)
    elif predictor == "reverse_diffusion":
        # Song et al. 2021, Eq. 46
        law.move(2 - a - forward_var / power, forward_var / power * t.alpha * MEAN, forward_var)
    elif predictor == "euler_maruyama":
        # Song et al. 2021, Eq. 6
        noise_var = t.diffusion_sq * (t.t - s.t)
        pull = noise_var / power
        law.move(1 - t.drift_coeff * (t.t - s.t) - pull, pull * t.alpha * MEAN, noise_var)
    else:
        raise ValueError(f"no recursion is written for predictor {predictor!r}; write one")


def _correct(law: Law, corrector: str, s: Point, snr: float) -> None:
    power = s.alpha**2 * VAR + s.sigma**2
    before = torch.tensor([max(s.t - 1 / (s.sde.table_size or 1000), 0.0)], dtype=torch.float64)
    alpha_i = (s.alpha / float(s.sde.alpha(before))) ** 2
    if corrector == "annealed_langevin":
        law.towards(s.alpha * MEAN, power, 2 * alpha_i * (snr * s.sigma) ** 2)
    elif corrector == "langevin":
        # Song et al. 2021, Algorithms 4 and 5, with |z|^2 and |score|^2 of n numbers at n times their expectations
        score_sq = float(((law.var + (law.mean - s.alpha * MEAN) ** 2) / power**2).mean())
        step = 2 * alpha_i * snr**2 / score_sq
        # Both norms' squares vary by sqrt(2 / n) of themselves, hence the step by no more than 2 / sqrt(n), which
        # moves the variance by its derivative in the step.
        slope = 2 - 2 * (1 - step / power) * law.var / power
        law.towards(s.alpha * MEAN, power, step)
        law.slack = law.slack + abs(slope) * step * 2
    else:
        raise ValueError(f"no recursion is written for corrector {corrector!r}; write one")


def predictor_corrector(
    sde: SDE, times: Tensor, *, predictor: str, corrector: str, snr: float, corrector_steps: int
) -> Law:
    """The law that Song et al. 2021, Algorithm 1, leads to from the exact marginal of the first time.

    Args:
        sde: The SDE.
        times: The grid.
        predictor: Name of a predictor.
        corrector: Name of a corrector but "none".
        snr: r.
        corrector_steps: Corrector steps after each prediction.
    """
    points = noisy_points(sde, times)
    law = Law(points[0].alpha * MEAN, points[0].alpha ** 2 * VAR + points[0].sigma ** 2)
    for t, s in pairwise(points):
        _predict(law, predictor, t, s)
        for _ in range(corrector_steps):
            _correct(law, corrector, s, snr)
    law.denoise(points[-1].alpha, points[-1].sigma)
    return law


def annealed_langevin(sde: SDE, times: Tensor, *, step_size: float, steps_per_level: int) -> Law:
    """The law that Song & Ermon 2020, Algorithm 1, leads to in y = x / alpha and r = sigma / alpha."""
    levels = [point.noise_ratio for point in noisy_points(sde, times)]
    law = Law(MEAN, VAR + levels[0] ** 2)
    for r in levels:
        for _ in range(steps_per_level):
            law.towards(MEAN, VAR + r**2, step_size * (r / levels[-1]) ** 2)
    law.denoise(1.0, levels[-1])
    return law
