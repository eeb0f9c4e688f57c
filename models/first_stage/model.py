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
        num_frames: Frames F of clips [B, C, F, H, W], each of which the network sees by itself; 0 for images.

    Attributes:
        latent_shape: (c, ...) of one z, (c, F, ...) of clips.
        latent_levels: Number of levels of each number of z; None without levels.
        log_snr: log 1 / r^2 of a noise r that is the same for all z; None of others.

    Raises:
        ValueError: If latents of clips are not Gaussian.

    Source: Kingma & Welling 2014; Rombach et al. 2022 for its place in diffusion; Ma et al. 2024 (Latte) for clips.
    """

    def __init__(self, backbone: nn.Module, sde: SDE, *, num_frames: int = 0) -> None:
        super().__init__()
        self.backbone: Any = backbone
        self.sde, self.num_frames = sde, num_frames
        channels, *space = self.backbone.latent_shape
        self.latent_shape: tuple[int, ...] = (channels, *((num_frames,) if num_frames else ()), *space)
        bottleneck: Bottleneck | None = getattr(backbone, "bottleneck", None)
        self.latent_levels = None if bottleneck is None else bottleneck.num_levels
        self.log_snr: float | None = getattr(bottleneck, "log_snr", None)
        self._latent = GaussianLatent if bottleneck is None else bottleneck.latent
        self._pixels: str = self.backbone.pixels
        if num_frames and self._latent is not GaussianLatent:
            raise ValueError("an autoencoder of clips has no codes yet; set bottleneck to diagonal or fixed")

    def with_backbone(self, backbone: nn.Module) -> FirstStage:
        """The same around a wrapper of its backbone, which need not have ``encode`` and ``decode``."""
        other = FirstStage.__new__(FirstStage)
        nn.Module.__init__(other)
        other.backbone, other.sde = backbone, self.sde
        other.latent_shape, other.latent_levels = self.latent_shape, self.latent_levels
        other.num_frames = self.num_frames
        other.log_snr, other._latent, other._pixels = self.log_snr, self._latent, self._pixels
        return other

    def forward(self, x0: Float[Tensor, "batch *shape"], eps: Float[Tensor, "batch *latent"]) -> FirstStageAnswer:
        """Encode, draw z, decode.

        Args:
            x0: Data, [B, C, ...].
            eps: Standard normal noise, [B, *latent_shape].
        """
        *latent, raw = map(self._as_clips, self.backbone(self._as_images(x0), self._as_images(eps)))
        return FirstStageAnswer(self._latent(*latent), read_pixels(raw, self._pixels, x0.shape[1]))

    def encode(self, x0: Float[Tensor, "batch *shape"]) -> Latent:
        """q(z | x) of data [B, C, ...]."""
        if not self.num_frames:
            return self.backbone.encode(x0)
        latent = self.backbone.encode(self._as_images(x0))
        return GaussianLatent(self._as_clips(latent.mean), self._as_clips(latent.log_std))

    def decode(self, z: Float[Tensor, "batch *latent"]) -> PixelDistribution:
        """p(x | z) of latents [B, *latent_shape]."""
        raw = self._as_clips(self.backbone.decode(self._as_images(z)))
        return read_pixels(raw, self._pixels, self.backbone.in_channels)

    def _as_images(self, clips: Tensor) -> Tensor:
        """[B, C, F, H, W] as [B F, C, H, W]; images as they are."""
        if not self.num_frames:
            return clips
        if clips.ndim != 5 or clips.shape[2] != self.num_frames:
            raise ValueError(
                f"clips must be [B, C, {self.num_frames}, H, W], got {list(clips.shape)}; give as many frames"
            )
        return clips.movedim(2, 1).flatten(0, 1)

    def _as_clips(self, images: Tensor) -> Tensor:
        """The inverse of ``_as_images``."""
        return images.unflatten(0, (-1, self.num_frames)).movedim(1, 2) if self.num_frames else images
