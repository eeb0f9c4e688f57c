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

from sde_lib import SDE

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


def _coefficients(sde: SDE, times: Tensor) -> list[tuple[float, float, float]]:
    """(t, alpha, sigma) of each time with noise."""
    rows = zip(times.tolist(), sde.alpha(times).tolist(), sde.sigma(times).tolist(), strict=True)
    return [row for row in rows if row[2] > 0]


def _predict(law: Law, sde: SDE, predictor: str, t: tuple[float, float, float], s: tuple[float, float, float]) -> None:
    (time_t, alpha_t, sigma_t), (time_s, alpha_s, sigma_s) = t, s
    power = alpha_t**2 * VAR + sigma_t**2
    a = alpha_t / alpha_s
    forward_var = sigma_t**2 - a**2 * sigma_s**2
    if predictor == "none":
        return
    if predictor == "ancestral":
        # Ho et al. 2020, Eq. 7, with x0 = m + alpha v (x - alpha m) / power
        on_x0, on_x = alpha_s * forward_var / sigma_t**2, a * sigma_s**2 / sigma_t**2
        gain = on_x0 * alpha_t * VAR / power
        law.move(gain + on_x, (on_x0 - gain * alpha_t) * MEAN, forward_var * sigma_s**2 / sigma_t**2)
    elif predictor == "reverse_diffusion":
        # Song et al. 2021, Eq. 46
        law.move(2 - a - forward_var / power, forward_var / power * alpha_t * MEAN, forward_var)
    elif predictor == "euler_maruyama":
        # Song et al. 2021, Eq. 6
        now = torch.tensor([time_t], dtype=torch.float64)
        f, g_squared, dt = float(sde.drift_coeff(now)), float(sde.diffusion_sq(now)), time_t - time_s
        pull = g_squared * dt / power
        law.move(1 - f * dt - pull, pull * alpha_t * MEAN, g_squared * dt)
    else:
        raise ValueError(f"no recursion is written for predictor {predictor!r}; write one")


def _correct(law: Law, sde: SDE, corrector: str, s: tuple[float, float, float], snr: float) -> None:
    time, alpha, sigma = s
    power = alpha**2 * VAR + sigma**2
    before = torch.tensor([max(time - 1 / (sde.table_size or 1000), 0.0)], dtype=torch.float64)
    alpha_i = (alpha / float(sde.alpha(before))) ** 2
    if corrector == "annealed_langevin":
        law.towards(alpha * MEAN, power, 2 * alpha_i * (snr * sigma) ** 2)
    elif corrector == "langevin":
        # Song et al. 2021, Algorithms 4 and 5, with |z|^2 and |score|^2 of n numbers at n times their expectations
        score_sq = float(((law.var + (law.mean - alpha * MEAN) ** 2) / power**2).mean())
        step = 2 * alpha_i * snr**2 / score_sq
        # Both norms' squares vary by sqrt(2 / n) of themselves, hence the step by no more than 2 / sqrt(n), which
        # moves the variance by its derivative in the step.
        share = step / power
        slope = 2 - 2 * (1 - share) * law.var / power
        law.towards(alpha * MEAN, power, step)
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
    points = _coefficients(sde, times)
    _, alpha, sigma = points[0]
    law = Law(alpha * MEAN, alpha**2 * VAR + sigma**2)
    for t, s in pairwise(points):
        _predict(law, sde, predictor, t, s)
        for _ in range(corrector_steps):
            _correct(law, sde, corrector, s, snr)
    law.denoise(*points[-1][1:])
    return law


def annealed_langevin(sde: SDE, times: Tensor, *, step_size: float, steps_per_level: int) -> Law:
    """The law that Song & Ermon 2020, Algorithm 1, leads to in y = x / alpha and r = sigma / alpha."""
    points = _coefficients(sde, times)
    levels = [sigma / alpha for _, alpha, sigma in points]
    law = Law(MEAN, VAR + levels[0] ** 2)
    for r in levels:
        for _ in range(steps_per_level):
            law.towards(MEAN, VAR + r**2, step_size * (r / levels[-1]) ** 2)
    law.denoise(1.0, levels[-1])
    return law


def last_point(sde: SDE, times: Tensor) -> tuple[float, float, float]:
    """(t, alpha, sigma) of the grid's last time with noise."""
    return _coefficients(sde, times)[-1]


def last_noise_ratio(sde: SDE, times: Tensor) -> float:
    """Sigma / alpha at the grid's last time with noise."""
    _, alpha, sigma = last_point(sde, times)
    return sigma / alpha
