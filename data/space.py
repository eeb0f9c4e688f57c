"""Stored values of a data set and what networks see of them, x0: there and back."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from .errors import DataError


@dataclass(frozen=True)
class LevelSpace:
    """Grey levels 0 .. L - 1, which networks see in [-1, 1].

    Args:
        num_levels: L, 2 .. 256, since pixels are stored as uint8.

    Raises:
        DataError: If it is out of range.
    """

    num_levels: int

    def __post_init__(self) -> None:
        if not 2 <= self.num_levels <= 256:
            raise DataError(f"num_levels must be 2 .. 256, got {self.num_levels}; pixels are stored as uint8")

    def encode(self, stored: Tensor) -> Tensor:
        """x = 2 k / (L - 1) - 1 of levels k, float32; the lowest level is exactly -1 and the highest exactly 1.

        Raises:
            DataError: If the levels are not integers.
        """
        if stored.is_floating_point() or stored.is_complex() or stored.dtype == torch.bool:
            raise DataError(f"images must hold integer grey levels, got {stored.dtype}; pass the uint8 images")
        # dividing last, rather than multiplying by 2 / (L - 1), makes both ends exact in float32
        return stored.to(torch.float32).mul_(2).div_(self.num_levels - 1).sub_(1)

    def decode(self, x0: Tensor) -> Tensor:
        """The nearest grey levels, uint8, the exact inverse of ``encode`` on [-1, 1]; values beyond are clamped.

        Raises:
            DataError: If x0 is not floating point or has a NaN, which has no grey level.
        """
        if not x0.is_floating_point():
            raise DataError(f"x must be floating point, got {x0.dtype}; pass values in [-1, 1]")
        wide = x0.to(torch.promote_types(x0.dtype, torch.float32))
        if bool(wide.isnan().any()):
            raise DataError(
                f"x has {int(wide.isnan().sum())} NaN values of {x0.numel()}; check the model that made them"
            )
        return ((wide.clamp(-1, 1) + 1) * ((self.num_levels - 1) / 2)).round().to(torch.uint8)

    def pixels(self, x0: Tensor) -> np.ndarray:
        """Pixels of 0 to 255 through the grey levels, uint8 [N, H, W, C], the convention of published FID evaluators.

        Args:
            x0: Samples in [-1, 1], [N, C, H, W]; clips [N, C, F, H, W] give [N, F, H, W, C].
        """
        levels = self.decode(x0).to("cpu").float()
        return (levels * (255 / (self.num_levels - 1))).round().byte().movedim(1, -1).contiguous().numpy()


@dataclass(frozen=True)
class RealSpace:
    """Real vectors v, which networks see standardized: x0 = (v - mean) / std in each dimension.

    Densities are of v: log p(v) = log p(x0) - sum log std.

    Args:
        mean: D numbers.
        std: As many, above 0.

    Raises:
        DataError: If they are not.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_levels: ClassVar[None] = None

    def __post_init__(self) -> None:
        numbers = (*self.mean, *self.std)
        if len(self.mean) != len(self.std) or not self.mean or not all(map(math.isfinite, numbers)):
            raise DataError(
                f"mean and std must be as many finite numbers, got {self.mean} and {self.std}; correct them"
            )
        if min(self.std) <= 0:
            raise DataError(
                f"dimension {self.std.index(min(self.std))} of the vectors is constant, and so has no density; drop it"
            )

    @classmethod
    def of(cls, vectors: Tensor) -> RealSpace:
        """The space in which these vectors [N, D] have mean 0 and standard deviation 1 in each dimension.

        Raises:
            DataError: If a vector is not finite, or a dimension constant.
        """
        wide = vectors.double()
        bad = int((~torch.isfinite(wide)).any(1).sum())
        if bad:
            raise DataError(f"{bad} of {len(wide)} vectors are not finite; leave them out")
        return cls(tuple(wide.mean(0).tolist()), tuple(wide.std(0, correction=0).tolist()))

    @property
    def log_volume(self) -> float:
        """sum log std: log |dv / dx0|, in nats."""
        return math.fsum(math.log(std) for std in self.std)

    def encode(self, stored: Tensor) -> Tensor:
        """x0 of vectors [N, D], float32."""
        return ((stored.double() - stored.new_tensor(self.mean).double()) / self._stds(stored)).float()

    def decode(self, x0: Tensor) -> Tensor:
        """Vectors [N, D] of x0, in float64."""
        return x0.double() * self._stds(x0) + torch.tensor(self.mean, dtype=torch.float64, device=x0.device)

    def _stds(self, like: Tensor) -> Tensor:
        return torch.tensor(self.std, dtype=torch.float64, device=like.device)


@dataclass(frozen=True)
class ModelSpace:
    """Samples that are x0 already.

    Args:
        num_levels: Number of levels that they lie on, evenly spread over [-1, 1]; None without levels.
    """

    num_levels: int | None = None

    def encode(self, stored: Tensor) -> Tensor:
        """The samples as float32."""
        return stored.float()

    def decode(self, x0: Tensor) -> Tensor:
        """x0 itself."""
        return x0


class Codec(Protocol):
    """An autoencoder, as data see it: images in [-1, 1] to latents and back."""

    def encode(self, x0: Tensor) -> Tensor:
        """The mean latent of images [N, C, H, W]."""
        ...

    def decode(self, z: Tensor) -> Tensor:
        """The mean image of latents."""
        ...


@dataclass(frozen=True)
class LatentSpace:
    """Images, of which networks see an autoencoder's latents, standardized: x0 = (z - mean) / std of each channel.

    Args:
        latent_shape: Shape of one latent, (c, h, w).
        mean: Mean of each channel, c numbers.
        std: Standard deviation of each, above 0.
        num_pixel_levels: Grey levels of the images.
        first_stage: Digest of the autoencoder, of its weights and options.
        num_levels: Number of levels of latents that are codes, evenly spread over [-1, 1], where mean is 0 and standard
            deviation 1; None of others.
        images: Digest of the images of whose latents mean and std are; "" where they are not known.

    Raises:
        DataError: If there are not as many numbers as channels.
    """

    latent_shape: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    num_pixel_levels: int
    first_stage: str
    num_levels: int | None = None
    images: str = ""

    def __post_init__(self) -> None:
        if not len(self.mean) == len(self.std) == self.latent_shape[0] or min(self.std) <= 0:
            raise DataError(
                f"a latent of {self.latent_shape[0]} channels needs as many means and standard deviations above 0, got "
                f"{self.mean} and {self.std}; a channel that never varies tells nothing, lower latent_channels"
            )

    def with_codec(self, codec: Codec) -> LatentSpace:
        """The same, with the autoencoder that ``encode`` and ``decode`` need."""
        space = replace(self)
        space.use(codec)
        return space

    def use(self, codec: Codec) -> None:
        """Take the autoencoder that ``encode`` and ``decode`` need."""
        # no field: it is told by its digest, and is no part of what a checkpoint says
        object.__setattr__(self, "_codec", codec)

    @property
    def codec(self) -> Codec:
        """The autoencoder."""
        return self._codec  # pyright: ignore[reportAttributeAccessIssue]

    def standardize(self, z: Tensor) -> Tensor:
        """(z - mean) / std of latents [N, c, ...], float32."""
        return ((z.double() - self._along(self.mean, z)) / self._along(self.std, z)).float()

    def encode(self, stored: Tensor) -> Tensor:
        """Standardized mean latents of grey levels [N, C, H, W], float32 on the CPU."""
        return self.standardize(self.codec.encode(LevelSpace(self.num_pixel_levels).encode(stored)).cpu())

    def decode(self, x0: Tensor) -> Tensor:
        """The nearest grey levels of what the decoder makes of standardized latents, uint8 [N, C, H, W]."""
        return LevelSpace(self.num_pixel_levels).decode(self._images(x0))

    def pixels(self, x0: Tensor) -> np.ndarray:
        """Pixels of 0 to 255 of standardized latents; see ``LevelSpace.pixels``."""
        return LevelSpace(self.num_pixel_levels).pixels(self._images(x0))

    def _images(self, x0: Tensor) -> Tensor:
        if self.num_levels is not None:
            codes = LevelSpace(self.num_levels)
            return self.codec.decode(codes.encode(codes.decode(x0))).cpu()
        z = x0.double() * self._along(self.std, x0) + self._along(self.mean, x0)
        return self.codec.decode(z.float()).cpu()

    @staticmethod
    def _along(values: tuple[float, ...], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64, device=like.device).view(1, -1, *[1] * (like.ndim - 2))


Space = LevelSpace | RealSpace | ModelSpace | LatentSpace
