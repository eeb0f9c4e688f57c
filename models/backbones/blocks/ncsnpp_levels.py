"""One resolution of NCSN++: its blocks, what leads to the next resolution, and the image that is brought in and out."""

import math
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import initialize
from .layers import AttentionBlock, ResBlock
from .levels import Level, apply_joined


class RescaledAttention(nn.Module):
    """Attention with its residual connection divided by sqrt(2), or as it is.

    Args:
        block: Returns ``x`` plus what it attends to.
        rescale: Divide by sqrt(2).

    Source: Song et al. 2021, Appendix H.2.
    """

    def __init__(self, block: AttentionBlock, *, rescale: bool) -> None:
        super().__init__()
        self.block = block
        self.scale = math.sqrt(0.5) if rescale else None

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, C, H, W] to features [B, C, H, W]."""
        attended = self.block(x)
        return attended if self.scale is None else attended * self.scale


class InputSkip(nn.Module):
    """The image at half the resolution, through a 1x1 convolution, added to the features.

    Args:
        image_channels: Channels of the image, ``C``.
        channels: Channels of the features, ``D``.
        down: Halves the resolution.

    Source: Song et al. 2021, Appendix H.2 (after Karras et al. 2020, StyleGAN2, Figure 7, "input skips").
    """

    def __init__(self, image_channels: int, channels: int, down: nn.Module) -> None:
        super().__init__()
        self.down = down
        self.conv = initialize(nn.Conv2d(image_channels, channels, 1))

    def forward(self, pyramid: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map the image [B, C, 2 H, 2 W] and features [B, D, H, W] to the image at [B, C, H, W] and features."""
        pyramid = self.down(pyramid)
        return pyramid, x + self.conv(pyramid)


class InputResidual(nn.Module):
    """The level's input pyramid at half the resolution, by a convolution, added to the features; that is the next one.

    Args:
        down: Halves the resolution and gives the pyramid the channels of the features.
        rescale: Divide the sum by sqrt(2).

    Source: Song et al. 2021, Appendix H.2 (after Karras et al. 2020, StyleGAN2, Figure 7, "residual nets").
    """

    def __init__(self, down: nn.Module, *, rescale: bool) -> None:
        super().__init__()
        self.down = down
        self.scale = math.sqrt(0.5) if rescale else None

    def forward(self, pyramid: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map the pyramid [B, C, 2 H, 2 W] and features [B, D, H, W] to the next pyramid, which is the features too."""
        x = x + self.down(pyramid)
        x = x if self.scale is None else x * self.scale
        return x, x


class OutputSkip(nn.Module):
    """A level's own image, added to that of the level below at twice its resolution.

    Args:
        norm: Normalizes the features.
        channels: Channels of the features, ``D``.
        image_channels: Channels of the image, ``C``.
        up: Doubles the resolution.

    Source: Song et al. 2021, Appendix H.2 (after Karras et al. 2020, StyleGAN2, Figure 7, "output skips").
    """

    def __init__(self, norm: nn.Module, channels: int, image_channels: int, up: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.conv = initialize(nn.Conv2d(channels, image_channels, 3, padding=1), zero=True)
        self.up = up

    def forward(self, x: Tensor, below: Tensor | None) -> Tensor:
        """Map features [B, D, H, W] and the image of the level below, [B, C, H / 2, W / 2], to one of [B, C, H, W]."""
        image = self.conv(F.silu(self.norm(x)))
        return image if below is None else image + self.up(below)


class PyramidUpLevel(Level):
    """One resolution on the way up: residual blocks, then attention, an image and resampling, each if any.

    Args:
        blocks: Residual blocks, each of which takes the features and one result of the way down.
        attention: One attention block for the whole level, unlike Ho et al.'s network; or None.
        image_output: What makes an image of the features.
        resample: What leads to the level above: a residual block, or a module that takes no embedding.
    """

    def __init__(
        self,
        blocks: Sequence[ResBlock],
        attention: RescaledAttention | None,
        image_output: OutputSkip | None,
        resample: nn.Module | None,
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = attention
        self.image_output = image_output
        self.resample = resample

    def forward(
        self, x: Tensor, embedding: Tensor, skips: Sequence[Tensor], image: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Apply the level.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E].
            skips: Results of the way down, one a block.
            image: The image of the level below, [B, ..., H / 2, W / 2], or None.

        Returns:
            Features, [B, D, H, W], or [B, D, 2 H, 2 W] with resampling, and the image at this level's resolution.
        """
        for block, skip in zip(self.blocks, skips, strict=True):
            x = self._run(apply_joined, block, x, skip, embedding)
        if self.attention is not None:
            x = self._run(self.attention, x)
        if self.image_output is not None:
            image = self.image_output(x, image)
        return (x if self.resample is None else self._resample(self.resample, x, embedding)), image
