"""The posterior of a latent: a Gaussian with independent dimensions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Latent:
    """q(z | x) = N(mean, std^2), independent in each dimension.

    Attributes:
        mean: [B, ...].
        log_std: log std, the shape of ``mean``.
    """

    mean: Float[Tensor, "batch *latent"]
    log_std: Float[Tensor, "batch *latent"]

    def draw(self, eps: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """z = mean + std eps, of standard normal noise."""
        return self.mean + self.log_std.exp() * eps

    def kl_to_standard_normal(self) -> Float[Tensor, " batch"]:
        """KL(q || N(0, I)) = sum of (mean^2 + std^2 - 1) / 2 - log std, in nats, float64 [B]."""
        mean, log_std = self.mean.double(), self.log_std.double()
        return (0.5 * (mean.square() + (2 * log_std).expm1()) - log_std).flatten(1).sum(1)

    @property
    def entropy(self) -> Float[Tensor, " batch"]:
        """H(q) = sum of log std + log(2 pi e) / 2, in nats, float64 [B]."""
        constant = 0.5 * (math.log(2 * math.pi) + 1)
        return (self.log_std.double() + constant).flatten(1).sum(1)
