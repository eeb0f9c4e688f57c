"""Halving and doubling the resolution by a FIR filter, so that nothing aliases, with a convolution or without."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import initialize
from .resampling import Downsample

Direction = Literal["down", "up"]


def fir_filter(kernel: Sequence[float]) -> Tensor:
    """The separable filter ``k k^T / (sum k)^2`` of a kernel such as (1, 3, 3, 1), which keeps a constant as it is.

    Args:
        kernel: Taps: an even number of them, symmetric, with a positive sum.

    Returns:
        float64 [K, K], summing to 1.

    Raises:
        ValueError: The kernel is no such one.

    Source: Zhang 2019 (filters against aliasing); Karras et al. 2019, Section 2.1 (config B) and
        Appendix C; the taps (1, 3, 3, 1) are from code (StyleGAN2, score_sde).
    """
    taps = [float(tap) for tap in kernel]
    if len(taps) < 2 or len(taps) % 2 or taps != taps[::-1] or sum(taps) <= 0:
        raise ValueError(
            f"fir_kernel must be symmetric, of even length and of positive sum, got {tuple(kernel)}; try (1, 3, 3, 1)"
        )
    normalized = torch.tensor([tap / sum(taps) for tap in taps], dtype=torch.float64)
    return torch.outer(normalized, normalized)


class _Filtering(nn.Module):
    """A layer with a filter, which is no weight and is not saved."""

    filter: Tensor

    def __init__(self, kernel: Sequence[float], gain: float = 1) -> None:
        super().__init__()
        self.register_buffer("filter", gain * fir_filter(kernel), persistent=False)


class FIRDownsample(_Filtering):
    """Filter, then keep every second pixel of every second row; zeros outside.

    ``y[i] = sum_j f[j] x[2 i + j - (K / 2 - 1)]`` along each axis. With the kernel (1, 1) it is the 2x2 average.

    Args:
        kernel: Taps of the filter; see ``fir_filter``.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / 2, W / 2]."""
        size = self.filter.shape[0]
        if size == 2:
            return F.avg_pool2d(x, 2)
        return F.conv2d(x, _per_channel(self.filter, x), stride=2, padding=size // 2 - 1, groups=x.shape[1])


class FIRUpsample(_Filtering):
    """Put a zero after every pixel and a row of zeros after every row, then filter by 4 f; zeros outside.

    ``y[o] = sum_i 2 f[o + K / 2 - 1 - 2 i] x[i]`` along each axis. With the kernel (1, 1) it repeats every pixel 2x2.

    Args:
        kernel: Taps of the filter; see ``fir_filter``.
    """

    def __init__(self, kernel: Sequence[float]) -> None:
        super().__init__(kernel, gain=4)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2 H, 2 W]."""
        size = self.filter.shape[0]
        if size == 2:
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        weight = _per_channel(self.filter, x)
        return F.conv_transpose2d(x, weight, stride=2, padding=size // 2 - 1, groups=x.shape[1])


class FIRConvDownsample(_Filtering):
    """Filter, then a 3x3 convolution of stride 2 on the filtered image, which reaches one pixel over its border.

    The filtered image is computed there too, rather than taken as zero, as Song et al.'s and EDM's networks do.

    Args:
        in_channels: Channels in, ``C``.
        out_channels: Channels out, ``D``.
        kernel: Taps of the filter; see ``fir_filter``.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: Sequence[float]) -> None:
        super().__init__(kernel)
        self.conv = initialize(nn.Conv2d(in_channels, out_channels, 3, stride=2))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / 2, W / 2]."""
        padding = self.filter.shape[0] // 2
        return self.conv(F.conv2d(x, _per_channel(self.filter, x), padding=padding, groups=x.shape[1]))


class ConvUpsample(nn.Module):
    """Double the resolution, then a 3x3 convolution.

    Args:
        channels: Channels, ``C``.
        kernel: Taps of the filter, None to repeat pixels; see ``fir_filter``.
    """

    def __init__(self, channels: int, kernel: Sequence[float] | None) -> None:
        super().__init__()
        self.up = make_resampler("up", kernel)
        self.conv = initialize(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2 H, 2 W]."""
        return self.conv(self.up(x))


def make_resampler(direction: Direction, kernel: Sequence[float] | None) -> nn.Module:
    """Resampling without parameters.

    Args:
        direction: "down" or "up".
        kernel: Taps of the filter; None is plain: 2x2 averages, or pixels repeated.
    """
    taps = (1, 1) if kernel is None else kernel
    return FIRDownsample(taps) if direction == "down" else FIRUpsample(taps)


def make_conv_downsample(in_channels: int, out_channels: int, kernel: Sequence[float] | None) -> nn.Module:
    """Halving with a convolution.

    Args:
        in_channels: Channels in.
        out_channels: Channels out.
        kernel: Taps of the filter; None is Ho et al.'s strided convolution.
    """
    if kernel is None:
        return Downsample(in_channels, out_channels)
    return FIRConvDownsample(in_channels, out_channels, kernel)


def _per_channel(fir: Tensor, x: Tensor) -> Tensor:
    return fir.to(x.dtype).expand(x.shape[1], 1, *fir.shape)
