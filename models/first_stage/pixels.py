"""Distributions of data that a decoder can say: how probable each pixel is, given the latent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.registry import choices_message


@dataclass(frozen=True, eq=False)
class GaussianPixels:
    """N(mean, std^2) in each dimension, whose mass on the bin of a grey level is its probability.

    Attributes:
        mean: [B, C, ...].
        log_std: log std, broadcastable to ``mean``.
    """

    mean: Float[Tensor, "batch *shape"]
    log_std: Float[Tensor, "#batch *_"]


@dataclass(frozen=True, eq=False)
class LevelPixels:
    """A probability of each grey level.

    Attributes:
        log_probs: log p of each of K levels, [B, C, K, ...].
    """

    log_probs: Float[Tensor, "batch channels levels *space"]

    @property
    def mean(self) -> Float[Tensor, "batch channels *space"]:
        """The mean level, in [-1, 1]."""
        level = torch.linspace(-1, 1, self.log_probs.shape[2], device=self.log_probs.device)
        return torch.einsum("bck...,k->bc...", self.log_probs.exp(), level.to(self.log_probs.dtype))


PixelDistribution = GaussianPixels | LevelPixels


def available_pixels() -> list[str]:
    """The names of the distributions."""
    return ["gaussian", "levels"]


def outputs_of_pixels(name: str, num_levels: int | None) -> int:
    """Numbers that a decoder gives for each channel of the data.

    Args:
        name: "gaussian": a mean, while the scale is a parameter for each channel (Rybkin et al. 2021); "levels": a
            logit for each grey level.
        num_levels: Number of grey levels K of the data.

    Raises:
        ValueError: If the name is unknown, or there are no levels.
    """
    if name not in available_pixels():
        raise ValueError(choices_message("pixels", name, available_pixels()))
    if name == "levels" and num_levels is None:
        raise ValueError("pixels=levels is of data with grey levels, got none; take gaussian")
    return 1 if name == "gaussian" else num_levels or 1


def read_pixels(raw: Tensor, name: str, channels: int) -> PixelDistribution:
    """The distribution that a decoder's output means.

    Args:
        raw: [B, 2 C, ...], means and then log scales, of "gaussian"; [B, C K, ...], of "levels".
        name: Its name.
        channels: C.
    """
    if name == "gaussian":
        return GaussianPixels(*raw.split(channels, dim=1))
    return LevelPixels(raw.unflatten(1, (channels, -1)).log_softmax(2))
