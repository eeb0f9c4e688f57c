"""The resolutions of the ADM networks: residual blocks that resample, and what stands at one resolution."""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .layers import AttentionBlock, NormFactory, ResBlock
from .normalization import group_norm
from .resampling import Downsample, Upsample
from .unet_levels import Level


class ResamplingBlock(ResBlock):
    """A residual block of as many channels out as in, that halves or doubles the resolution.

    Both branches are resampled: ``h = conv1(resample(SiLU(norm1(x))))`` takes the place of ``conv1(SiLU(norm1(x)))``,
    and ``resample(x)`` that of the skip. Halving is the mean of 2x2 pixels, doubling repeats each pixel 2x2.

    Args:
        channels: Number of channels, ``C``.
        embedding_dim: Features of the embedding, ``E``.
        up: Double instead of halve.
        dropout: Probability, in [0, 1).
        scale_shift: Let the embedding scale and shift instead of adding.
        norm: Builds the normalization of a number of channels.

    Raises:
        ValueError: ``dropout`` is outside [0, 1).

    Source: Song et al. 2021, Appendix H (BigGAN's blocks, Brock et al. 2019); Dhariwal and Nichol 2021, Section 3.
    """

    def __init__(
        self,
        channels: int,
        embedding_dim: int,
        *,
        up: bool,
        dropout: float = 0.0,
        scale_shift: bool = False,
        norm: NormFactory = group_norm,
    ) -> None:
        super().__init__(channels, channels, embedding_dim, dropout=dropout, scale_shift=scale_shift, norm=norm)
        self.up = up

    def _resample(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2.0, mode="nearest") if self.up else F.avg_pool2d(x, 2)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map features [B, C, H, W] and an activated embedding [B, E] to [B, C, H / 2, W / 2] or [B, C, 2 H, 2 W]."""
        hidden = self.conv1(self._resample(F.silu(self.norm1(x))))
        projected = self.project(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + projected)
        return self._resample(x) + self.conv2(self.dropout(F.silu(hidden)))


Resample = ResamplingBlock | Downsample | Upsample


class ADMLevel(Level):
    """One resolution: residual blocks, each followed by attention if any, then resampling if any.

    On the way up every block takes, next to the features, one result of the way down.

    Args:
        blocks: Residual blocks.
        attention: As many attention blocks, or none.
        resample: What leads to the next resolution.

    Source: Dhariwal and Nichol 2021, Section 3.
    """

    def __init__(
        self, blocks: Sequence[ResBlock], attention: Sequence[AttentionBlock], resample: Resample | None
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.resample = resample

    def forward(self, x: Tensor, embedding: Tensor, skips: Sequence[Tensor] = ()) -> list[Tensor]:
        """Apply the level.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E].
            skips: Results of the way down, one a block in the order of the blocks; none on the way down.

        Returns:
            The result of each block, and of resampling where there is any; the last one goes on.
        """
        results = []
        for i, block in enumerate(self.blocks):
            x = self._run(block, torch.cat((x, skips[i]), dim=1) if skips else x, embedding)
            if self.attention:
                x = self._run(self.attention[i], x)
            results.append(x)
        if isinstance(self.resample, ResamplingBlock):
            results.append(self._run(self.resample, x, embedding))
        elif self.resample is not None:
            results.append(self.resample(x))
        return results


class ADMMiddle(ADMLevel):
    """The lowest resolution: residual block, attention if any, residual block.

    Args:
        block1: First residual block.
        attention: Attention block, or None.
        block2: Second residual block.
    """

    def __init__(self, block1: ResBlock, attention: AttentionBlock | None, block2: ResBlock) -> None:
        nn.Module.__init__(self)
        self.block1 = block1
        self.attention = attention
        self.block2 = block2

    def forward(self, x: Tensor, embedding: Tensor, skips: Sequence[Tensor] = ()) -> list[Tensor]:
        """Map features [B, C, H, W] and an activated embedding [B, E] to a list of one [B, C, H, W]."""
        x = self._run(self.block1, x, embedding)
        if self.attention is not None:
            x = self._run(self.attention, x)
        return [self._run(self.block2, x, embedding)]


class ADMBlocks:
    """Builds the blocks of one network, which all share its settings.

    Args:
        embedding_dim: Features of the embedding, ``E``.
        dropout: Probability inside the residual blocks, in [0, 1).
        scale_shift_norm: Let the embedding scale and shift the second norm instead of adding before it.
        num_heads: Heads of every attention block; ignored when ``head_channels`` is given.
        head_channels: Channels of one head.
        floor_heads: Take ``channels // head_channels`` heads, and no attention where that is none.
        residual_resampling: Resample by residual blocks instead of convolutions.
        symmetric_downsample: Pad every side before strided convolutions.
        norm_eps: Epsilon of the group norms.
        norm_groups: Groups of the norms.
        norm_group_channels: Channels that a group has at least; there are fewer groups where needed.
    """

    def __init__(
        self,
        *,
        embedding_dim: int,
        dropout: float,
        scale_shift_norm: bool,
        num_heads: int,
        head_channels: int | None,
        floor_heads: bool,
        residual_resampling: bool,
        symmetric_downsample: bool,
        norm_eps: float,
        norm_groups: int,
        norm_group_channels: int,
    ) -> None:
        self._heads = num_heads, head_channels, floor_heads
        self._residual_resampling = residual_resampling
        self._symmetric_downsample = symmetric_downsample
        self._norm = norm_eps, norm_groups, norm_group_channels
        common = {"dropout": dropout, "scale_shift": scale_shift_norm, "norm": self.norm}
        self.res_block = partial(ResBlock, embedding_dim=embedding_dim, **common)
        self._resampling_block = partial(ResamplingBlock, embedding_dim=embedding_dim, **common)

    def norm(self, channels: int) -> nn.GroupNorm:
        """A group norm of that many channels."""
        eps, groups, least = self._norm
        most = groups if least == 1 else max(1, min(groups, channels // least))
        return group_norm(channels, eps, max_groups=most)

    def attend(self, channels: int, *, norm: NormFactory | None = None) -> AttentionBlock | None:
        """An attention block of that many channels, or None where they do not make one head."""
        num_heads, head_channels, floor_heads = self._heads
        if floor_heads and head_channels is not None:
            num_heads, head_channels = channels // head_channels, None
            if num_heads == 0:
                return None
        return AttentionBlock(channels, num_heads=num_heads, head_channels=head_channels, norm=norm or self.norm)

    def level(self, blocks: Sequence[ResBlock], *, attend: bool, resample: Resample | None) -> ADMLevel:
        """A level, with an attention block for each residual one if it attends."""
        attention = [self.attend(block.conv1.out_channels) for block in blocks if attend]
        return ADMLevel(blocks, [block for block in attention if block is not None], resample)

    def middle(self, channels: int, *, attend: bool = True, norm: NormFactory | None = None) -> ADMMiddle:
        """The middle of a network."""
        attention = self.attend(channels, norm=norm) if attend else None
        return ADMMiddle(self.res_block(channels, channels), attention, self.res_block(channels, channels))

    def down(self, channels: int) -> Resample:
        """The layer that halves the resolution."""
        if self._residual_resampling:
            return self._resampling_block(channels, up=False)
        return Downsample(channels, symmetric=self._symmetric_downsample)

    def up(self, channels: int) -> Resample:
        """The layer that doubles the resolution."""
        return self._resampling_block(channels, up=True) if self._residual_resampling else Upsample(channels)

    def encoder(
        self, channels: int, widths: Sequence[int], attends: Sequence[bool], num_res_blocks: int
    ) -> tuple[nn.ModuleList, list[int]]:
        """The way down.

        Args:
            channels: Channels of the first convolution's result.
            widths: Channels of each level.
            attends: Whether each level attends.
            num_res_blocks: Residual blocks a level.

        Returns:
            The levels, and the channels of every result that the way up takes, that of the first convolution included.
        """
        levels, skips = nn.ModuleList(), [channels]
        for i, (width, attend) in enumerate(zip(widths, attends, strict=True)):
            blocks = [self.res_block(channels if j == 0 else width, width) for j in range(num_res_blocks)]
            resample = self.down(width) if i < len(widths) - 1 else None
            levels.append(self.level(blocks, attend=attend, resample=resample))
            skips += [width] * (num_res_blocks + (resample is not None))
            channels = width
        return levels, skips
