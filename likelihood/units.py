"""Nats, bits/dim, and means with standard errors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor


def nats_to_bits_per_dim(nats: Tensor, num_dims: int) -> Tensor:
    """Nats per image to bits per dimension: nats / (num_dims ln 2).

    Args:
        nats: Any shape.
        num_dims: Number of dimensions of one image, C H W.
    """
    return nats / (num_dims * math.log(2))


@dataclass
class RunningMean:
    """Mean and standard error of a stream of values, by Chan et al.'s update: whole split, any batch sizes.

    Attributes:
        count: Number of values so far.
        mean: Their mean.
        squares: Sum of squared deviations from the mean.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = field(default=0.0, repr=False)

    def update(self, values: Float[Tensor, " batch"]) -> None:
        """Add a batch of values, [B]."""
        values = values.detach().double().flatten()
        if not len(values):
            return
        count = self.count + len(values)
        batch_mean = float(values.mean())
        delta = batch_mean - self.mean
        self.squares += float((values - batch_mean).square().sum()) + delta**2 * self.count * len(values) / count
        self.mean += delta * len(values) / count
        self.count = count

    @property
    def stderr(self) -> float:
        """Standard error of the mean, s / sqrt(n); NaN below two values."""
        if self.count < 2:
            return math.nan
        return math.sqrt(self.squares / (self.count - 1) / self.count)


def mean_and_stderr(values: Float[Tensor, " batch"]) -> tuple[float, float]:
    """Mean and standard error of independent values.

    Args:
        values: One value per image, [B].

    Returns:
        The mean, and s / sqrt(B) (NaN for B < 2).
    """
    running = RunningMean()
    running.update(torch.as_tensor(values))
    return running.mean, running.stderr
