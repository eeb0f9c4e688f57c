"""The latent of an autoencoder: a Gaussian with independent dimensions, or codes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


class Latent(ABC):
    """q(z | x), of a batch.

    Attributes:
        mean: Mean of z, [B, ...].
        rate: KL(q(z | x) || p(z)) for the p(z) that an autoencoder has alone, in nats, float64 [B].
    """

    mean: Float[Tensor, "batch *latent"]
    rate: Float[Tensor, " batch"]

    @abstractmethod
    def draw(self, eps: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """z of standard normal noise."""


@dataclass(frozen=True, eq=False)
class GaussianLatent(Latent):
    """q(z | x) = N(mean, std^2), independent in each dimension; alone, p(z) = N(0, I).

    Attributes:
        mean: [B, ...].
        log_std: log std, the shape of ``mean``.
    """

    mean: Float[Tensor, "batch *latent"]
    log_std: Float[Tensor, "batch *latent"]

    def draw(self, eps: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """z = mean + std eps."""
        return self.mean + self.log_std.exp() * eps

    @property
    def rate(self) -> Float[Tensor, " batch"]:  # pyright: ignore[reportIncompatibleVariableOverride]
        """KL(q || N(0, I)) = sum of (mean^2 + std^2 - 1) / 2 - log std."""
        mean, log_std = self.mean.double(), self.log_std.double()
        return (0.5 * (mean.square() + (2 * log_std).expm1()) - log_std).flatten(1).sum(1)

    @property
    def entropy(self) -> Float[Tensor, " batch"]:
        """H(q) = sum of log std + log(2 pi e) / 2, in nats, float64 [B]."""
        constant = 0.5 * (math.log(2 * math.pi) + 1)
        return (self.log_std.double() + constant).flatten(1).sum(1)


@dataclass(frozen=True, eq=False)
class CodeLatent(Latent):
    """One z for each x, out of finitely many; alone, p(z) has all of them equally likely.

    Attributes:
        mean: z itself, [B, ...]; gradients pass to the encoder as if it were the encoder's output (Bengio et al. 2013).
        rate: log of the number of codes, in nats, float64 [B].
    """

    mean: Float[Tensor, "batch *latent"]
    rate: Float[Tensor, " batch"]

    def draw(self, eps: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """z, which no noise changes."""
        return self.mean
