"""Prediction: a network's answer at x_t as x0, eps or score."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import expand_like


@dataclass(frozen=True, eq=False)
class Prediction:
    """A network's prediction at x_t: the clean data x0 and the noise eps, with x_t = alpha x0 + sigma eps.

    Attributes:
        x0: Predicted data, E[x0 | x_t] for a perfect network, [B, ...].
        eps: Predicted noise, [B, ...].
        sigma: Noise standard deviation at t, float64 [B].
        variance_fraction: Where a network that learns its reverse variance places it between the small one (0) and the
            large one (1), in the logarithm (Nichol & Dhariwal 2021, Eq. 15), [B, ...]; None without.
    """

    x0: Float[Tensor, "batch *shape"]
    eps: Float[Tensor, "batch *shape"]
    sigma: Float[Tensor, " batch"]
    variance_fraction: Float[Tensor, "batch *shape"] | None = None

    @property
    def score(self) -> Float[Tensor, "batch *shape"]:
        """grad log p_t(x_t) = -eps / sigma."""
        return -self.eps / expand_like(self.sigma, self.eps)

    @classmethod
    def from_eps(
        cls, x_t: Tensor, eps: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """x0 = (x_t - sigma eps) / alpha."""
        return cls(_rest(x_t, sigma, eps, alpha), eps, sigma, variance_fraction)

    @classmethod
    def from_x0(
        cls, x_t: Tensor, x0: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """eps = (x_t - alpha x0) / sigma."""
        return cls(x0, _rest(x_t, alpha, x0, sigma), sigma, variance_fraction)

    @classmethod
    def from_v(
        cls, x_t: Tensor, v: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """v = alpha eps - sigma x0 (Salimans & Ho 2022, Appendix D), for any alpha and sigma:

        x0 = (alpha x_t - sigma v) / (alpha^2 + sigma^2),   eps = (sigma x_t + alpha v) / (alpha^2 + sigma^2).
        """
        power = alpha.square() + sigma.square()
        x0 = expand_like(alpha / power, x_t) * x_t - expand_like(sigma / power, x_t) * v
        eps = expand_like(sigma / power, x_t) * x_t + expand_like(alpha / power, x_t) * v
        return cls(x0, eps, sigma, variance_fraction)

    @classmethod
    def from_score(
        cls, x_t: Tensor, score: Tensor, *, alpha: Tensor, sigma: Tensor, variance_fraction: Tensor | None = None
    ) -> Prediction:
        """eps = -sigma score, and x0 by Tweedie's formula (Robbins 1956)."""
        eps = -expand_like(sigma, x_t) * score
        return cls.from_eps(x_t, eps, alpha=alpha, sigma=sigma, variance_fraction=variance_fraction)


def _rest(x_t: Tensor, scale: Tensor, known: Tensor, divisor: Tensor) -> Tensor:
    """(x_t - scale known) / divisor."""
    # multiplying by the reciprocal, taken in float64, is twice as fast as dividing
    difference = torch.addcmul(x_t, expand_like(scale, x_t), known, value=-1)
    return difference.mul_(expand_like(divisor.reciprocal(), x_t))
