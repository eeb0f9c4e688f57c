"""A first stage: an autoencoder as the trainer, measurements and latent models see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from sde_lib import SDE

from .bottlenecks import Bottleneck
from .latent import GaussianLatent, Latent
from .pixels import PixelDistribution, read_pixels


@dataclass(frozen=True, eq=False)
class FirstStageAnswer:
    """The answer of a first stage to a batch.

    Attributes:
        latent: q(z | x).
        pixels: p(x | z) for the z that was drawn.
    """

    latent: Latent
    pixels: PixelDistribution


class FirstStage(nn.Module):
    """An encoder q(z | x) and a decoder p(x | z).

    Args:
        backbone: Network from (x [B, ...], eps [B, ...latent]) to the tensors of its ``Latent`` and the decoder's raw
            output for the z that eps draws, such as ``Autoencoder``; with ``encode`` and ``decode``, ``latent_shape``,
            ``pixels``, the name of its distribution of pixels, and ``bottleneck`` unless its latents are Gaussian.
        sde: The SDE of the config, which an autoencoder alone has no use for.

    Attributes:
        latent_shape: (c, ...) of one z.
        latent_levels: Number of levels of each number of z; None without levels.

    Source: Kingma & Welling 2014; Rombach et al. 2022 for its place in diffusion.
    """

    def __init__(self, backbone: nn.Module, sde: SDE) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.sde = sde
        self.latent_shape: tuple[int, ...] = self.backbone.latent_shape
        bottleneck: Bottleneck | None = getattr(backbone, "bottleneck", None)
        self.latent_levels = None if bottleneck is None else bottleneck.num_levels
        self._latent = GaussianLatent if bottleneck is None else bottleneck.latent
        self._pixels: str = self.backbone.pixels

    def with_backbone(self, backbone: nn.Module) -> FirstStage:
        """The same around a wrapper of its backbone, which need not have ``encode`` and ``decode``."""
        other = FirstStage.__new__(FirstStage)
        nn.Module.__init__(other)
        other.backbone, other.sde = backbone, self.sde
        other.latent_shape, other.latent_levels = self.latent_shape, self.latent_levels
        other._latent, other._pixels = self._latent, self._pixels
        return other

    def forward(self, x0: Float[Tensor, "batch *shape"], eps: Float[Tensor, "batch *latent"]) -> FirstStageAnswer:
        """Encode, draw z, decode.

        Args:
            x0: Data, [B, C, ...].
            eps: Standard normal noise, [B, *latent_shape].
        """
        *latent, raw = self.backbone(x0, eps)
        return FirstStageAnswer(self._latent(*latent), read_pixels(raw, self._pixels, x0.shape[1]))

    def encode(self, x0: Float[Tensor, "batch *shape"]) -> Latent:
        """q(z | x) of data [B, C, ...]."""
        return self.backbone.encode(x0)

    def decode(self, z: Float[Tensor, "batch *latent"]) -> PixelDistribution:
        """p(x | z) of latents [B, *latent_shape]."""
        return read_pixels(self.backbone.decode(z), self._pixels, self.backbone.in_channels)
