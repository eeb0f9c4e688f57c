"""Bottlenecks: from the output of an encoder to the posterior of the latent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from runtime.registry import Registry

from .latent import Latent


class Bottleneck(nn.Module, ABC):
    """Turns the output of an encoder into q(z | x).

    Attributes:
        outputs_per_channel: Numbers that the encoder gives for each of the latent.
    """

    outputs_per_channel: ClassVar[int] = 1

    @abstractmethod
    def forward(self, raw: Tensor) -> Latent:
        """Read the encoder's output, [B, c outputs_per_channel, ...], as the posterior of z, [B, c, ...]."""


BOTTLENECKS: Registry[Bottleneck] = Registry("bottleneck")
register_bottleneck, available_bottlenecks = BOTTLENECKS.register, BOTTLENECKS.names


def make_bottleneck(name: str, **options: Any) -> Bottleneck:
    """Build a bottleneck by name; it is given those of the options that it has.

    Args:
        name: One of ``available_bottlenecks()``.
        **options: ``log_snr``.

    Raises:
        ValueError: If the name is unknown or an option impossible.
    """
    return BOTTLENECKS.make(name, **(options if name == "fixed" else {}))


@register_bottleneck("fixed")
class FixedNoise(Bottleneck):
    """z = mean + r eps with r = exp(-log_snr / 2), the same for all: the encoder gives the mean alone.

    z is then the state of a diffusion of the mean at the time whose log-SNR this is, divided by alpha (Heek et al.
    2026, "Unified Latents"), and the bound of that diffusion from there on is what z costs.

    Args:
        log_snr: log 1 / r^2, finite.

    Raises:
        ValueError: If it is not.
    """

    def __init__(self, *, log_snr: float = 4.0) -> None:
        super().__init__()
        if not math.isfinite(log_snr):
            raise ValueError(f"log_snr of a fixed bottleneck must be finite, got {log_snr}; try 4")
        self.log_snr = log_snr

    def forward(self, raw: Tensor) -> Latent:
        """mean = raw."""
        return Latent(raw, raw.new_tensor(-0.5 * self.log_snr).expand_as(raw))


@register_bottleneck("diagonal")
class DiagonalNoise(Bottleneck):
    """The encoder gives the mean and the log variance of each dimension (Kingma & Welling 2014).

    The log variance is kept in [-30, 20], as published autoencoders have it.
    """

    outputs_per_channel = 2

    def forward(self, raw: Tensor) -> Latent:
        """mean, then log variance, along the channels."""
        mean, log_var = raw.chunk(2, dim=1)
        return Latent(mean, 0.5 * log_var.clamp(-30.0, 20.0))
