"""Bottlenecks: from the output of an encoder to the posterior of the latent."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from runtime.options import option_names
from runtime.registry import Registry

from .latent import CodeLatent, GaussianLatent, Latent


class Bottleneck(nn.Module, ABC):
    """Turns the output of an encoder into q(z | x).

    Attributes:
        outputs_per_channel: Numbers that the encoder gives for each of the latent.
        latent: Class of the latents, whose fields are tensors.
        num_levels: Number of levels of each number of z, which are evenly spread over [-1, 1]; None without levels.
    """

    outputs_per_channel: ClassVar[int] = 1
    latent: ClassVar[type[Latent]] = GaussianLatent
    num_levels: int | None = None

    @abstractmethod
    def forward(self, raw: Tensor) -> Any:
        """Read the encoder's output, [B, c outputs_per_channel, ...], as the posterior of z, [B, c, ...]."""


BOTTLENECKS: Registry[Bottleneck] = Registry("bottleneck")
register_bottleneck, available_bottlenecks = BOTTLENECKS.register, BOTTLENECKS.names


def make_bottleneck(name: str, **options: Any) -> Bottleneck:
    """Build a bottleneck by name; it is given those of the options that it has.

    Args:
        name: One of ``available_bottlenecks()``.
        **options: ``log_snr``, ``latent_levels``.

    Raises:
        ValueError: If the name is unknown or an option impossible.
    """
    known, _ = option_names(BOTTLENECKS.get(name))
    return BOTTLENECKS.make(name, **{key: value for key, value in options.items() if key in known})


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

    def forward(self, raw: Tensor) -> GaussianLatent:
        """mean = raw."""
        return GaussianLatent(raw, raw.new_tensor(-0.5 * self.log_snr).expand_as(raw))


@register_bottleneck("diagonal")
class DiagonalNoise(Bottleneck):
    """The encoder gives the mean and the log variance of each dimension (Kingma & Welling 2014).

    The log variance is kept in [-30, 20], as published autoencoders have it.
    """

    outputs_per_channel = 2

    def forward(self, raw: Tensor) -> GaussianLatent:
        """mean, then log variance, along the channels."""
        mean, log_var = raw.chunk(2, dim=1)
        return GaussianLatent(mean, 0.5 * log_var.clamp(-30.0, 20.0))


@register_bottleneck("fsq")
class FiniteScalars(Bottleneck):
    """z on a lattice of L levels in each dimension, 2 k / (L - 1) - 1 for k = 0 .. L - 1, with

        k = round(L sigmoid(raw) - 1/2),

    whose gradient is that without rounding (Mentzer et al. 2023, Section 3.1; there with tanh, whose outer bins are
    narrower, and another L for each channel). The codes k are data of L grey levels.

    Args:
        latent_levels: L, 2 .. 256.

    Raises:
        ValueError: If it is out of range.
    """

    latent: ClassVar[type[Latent]] = CodeLatent

    def __init__(self, *, latent_levels: int = 5) -> None:
        super().__init__()
        if not 2 <= latent_levels <= 256:
            raise ValueError(f"latent_levels must be 2 .. 256, got {latent_levels}; codes are stored as uint8, try 5")
        self.num_levels = self.latent_levels = latent_levels

    def forward(self, raw: Tensor) -> CodeLatent:
        """The lattice point of each number."""
        levels = self.latent_levels
        place = levels * raw.sigmoid() - 0.5
        code = place.detach().round().clamp(0, levels - 1)
        # the data's own formula, to the last bit; what is added to it is 0 and has the gradient
        lattice = code.mul(2).div(levels - 1).sub(1)
        through = 2 / (levels - 1) * (place - place.detach())
        nats = math.log(levels) * raw[0].numel()
        return CodeLatent(lattice + through, torch.full((len(raw),), nats, dtype=torch.float64, device=raw.device))
