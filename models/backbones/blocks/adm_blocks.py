"""Builds the levels of the ADM networks and of their classifier."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from torch import nn

from .fir import Direction, make_resampler
from .layers import AttentionBlock, NormFactory, ResBlock
from .levels import DownLevel, MiddleLevel, UpLevel, down_blocks, up_blocks
from .normalization import group_norm
from .resampling import Downsample, Upsample

Resampling = Literal["residual", "convolution"]


@dataclass(frozen=True)
class ADMBlocks:
    """Builds the levels of one network, whose blocks all share these settings; those not named here are ``ADM``'s.

    Args:
        first: Channels of the first convolution's result.
        widths: Channels of each level.
        features: Features of the embedding, ``E``.
    """

    first: int
    widths: Sequence[int]
    features: int
    num_res_blocks: int
    dropout: float
    scale_shift_norm: bool
    resampling: Resampling
    head_channels: int | None
    num_heads: int = 1
    floor_heads: bool = False
    symmetric_downsample: bool = True
    norm_eps: float = 1e-5
    norm_groups: int = 32
    norm_group_channels: int = 1

    @classmethod
    def of(cls, options: Mapping[str, Any], *, first: int, widths: Sequence[int]) -> "ADMBlocks":
        """The builder for a network's options, as far as it has them."""
        shared = {field.name: options[field.name] for field in fields(cls) if field.name in options}
        return cls(first=first, widths=widths, features=4 * options["channels"], **shared)

    def norm(self, channels: int) -> nn.GroupNorm:
        """A group norm of that many channels."""
        least = self.norm_group_channels
        most = self.norm_groups if least == 1 else max(1, min(self.norm_groups, channels // least))
        return group_norm(channels, self.norm_eps, max_groups=most)

    def res_block(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        """A residual block."""
        return ResBlock(
            in_channels,
            out_channels,
            self.features,
            dropout=self.dropout,
            scale_shift=self.scale_shift_norm,
            norm=self.norm,
            resample=resample,
        )

    def attend(self, channels: int, count: int = 1, *, norm: NormFactory | None = None) -> list[AttentionBlock]:
        """That many attention blocks of that many channels, or none where these do not make one head."""
        num_heads, head_channels = self.num_heads, self.head_channels
        if self.floor_heads and head_channels is not None:
            num_heads, head_channels = channels // head_channels, None
            count = count if num_heads else 0
        return [
            AttentionBlock(channels, num_heads=num_heads, head_channels=head_channels, norm=norm or self.norm)
            for _ in range(count)
        ]

    def _resample(self, direction: Direction, channels: int) -> nn.Module:
        if self.resampling == "residual":
            return self.res_block(channels, channels, make_resampler(direction, None))
        return Downsample(channels, symmetric=self.symmetric_downsample) if direction == "down" else Upsample(channels)

    def down(self, attends: Sequence[bool]) -> nn.ModuleList:
        """The levels on the way down, of which some attend."""
        levels = nn.ModuleList()
        for i, blocks in enumerate(down_blocks(self.res_block, self.first, self.widths, self.num_res_blocks)):
            width = self.widths[i]
            resample = self._resample("down", width) if i < len(self.widths) - 1 else None
            levels.append(DownLevel(blocks, self.attend(width, len(blocks)) if attends[i] else [], resample))
        return levels

    def middle(self, *, attend: bool = True, norm: NormFactory | None = None) -> MiddleLevel:
        """The middle of a network."""
        width = self.widths[-1]
        block1 = self.res_block(width, width)
        attention = self.attend(width, norm=norm) if attend else []
        return MiddleLevel(block1, attention[0] if attention else None, self.res_block(width, width))

    def up(self, attends: Sequence[bool]) -> nn.ModuleList:
        """The levels on the way up, that of the highest resolution first."""
        levels: list[UpLevel] = []
        for blocks in up_blocks(self.res_block, self.first, self.widths, self.num_res_blocks):
            i = len(self.widths) - 1 - len(levels)
            width = self.widths[i]
            resample = self._resample("up", width) if i else None
            levels.append(UpLevel(blocks, self.attend(width, len(blocks)) if attends[i] else [], resample))
        return nn.ModuleList(reversed(levels))
