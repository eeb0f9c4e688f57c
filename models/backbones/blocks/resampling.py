"""Halving and doubling the resolution, as Ho et al.'s network does."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import initialize


class Downsample(nn.Module):
    """Halve the resolution by a 3x3 convolution of stride 2.

    Ho et al.'s network, written in TensorFlow, pads "SAME": zeros below and to the right only, so that the kernel at
    output (i, j) covers inputs 2i .. 2i + 2. PyTorch ports by OpenAI pad every side (``symmetric``): 2i - 1 .. 2i + 1.

    Args:
        in_channels: Channels in, ``C``.
        out_channels: Channels out, ``D``; as many as in when None.
        symmetric: Pad every side instead.

    Source: Released code of Ho et al. 2020, and of Nichol and Dhariwal 2021.
    """

    def __init__(self, in_channels: int, out_channels: int | None = None, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = initialize(nn.Conv2d(in_channels, out_channels or in_channels, 3, stride=2, padding=int(symmetric)))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, D, H / 2, W / 2]."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: each pixel repeated 2x2, then a 3x3 convolution.

    A 3x3 window over repeated pixels covers 2x2 different ones, a different four for even and for odd rows and columns.
    On a CPU these four convolutions, whose kernels are sums of the taps that meet in a pixel, are done at the low
    resolution: 4/9 of the multiplications, and the repeated pixels are never written.

    Args:
        channels: Number of channels, ``C``.

    Source: Ho et al. 2020, Appendix B.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = initialize(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2 H, 2 W]."""
        if x.device.type == "cpu":
            return self._by_parity(x)
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))

    def _by_parity(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        weight = self.conv.weight
        # row 2 i of the result sees rows i - 1, i, i of x, row 2 i + 1 sees i, i, i + 1; columns alike
        first, middle, last = weight.unbind(2)
        row_kernels = (torch.stack((first, middle + last), 2), torch.stack((first + middle, last), 2))
        interleaved = []
        for row, by_row in enumerate(row_kernels):
            first, middle, last = by_row.unbind(3)
            column_kernels = (torch.stack((first, middle + last), 3), torch.stack((first + middle, last), 3))
            for column, kernel in enumerate(column_kernels):
                kernel = kernel.contiguous(memory_format=torch.channels_last)
                every_fourth = F.conv2d(x, kernel, self.conv.bias, padding=1)
                interleaved.append(every_fourth[:, :, row : row + height, column : column + width])
        grid = torch.stack(interleaved).view(2, 2, batch, channels, height, width)
        channels_last = grid.permute(2, 4, 0, 5, 1, 3).reshape(batch, 2 * height, 2 * width, channels)
        return channels_last.permute(0, 3, 1, 2)
