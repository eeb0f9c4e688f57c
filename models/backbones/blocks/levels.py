"""One resolution of a U-Net: its residual and attention blocks, and what leads to the next resolution."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .cross_attention import Text
from .layers import ResBlock


class Level(nn.Module):
    """Base of the levels.

    Attributes:
        gradient_checkpointing: Keep only what goes in and out of a block for the backward pass, which computes the
            block anew: about a third more work, for the memory of one block instead of all.

    Source: Chen et al. 2016.
    """

    gradient_checkpointing = False

    def _run(self, block: Callable[..., Tensor], *inputs: Any) -> Tensor:
        if self.gradient_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, *inputs, use_reentrant=False)
        return block(*inputs)

    def _resample(self, resample: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
        return self._run(resample, x, embedding) if isinstance(resample, ResBlock) else resample(x)


class BlocksLevel(Level):
    """Base of the levels on the way down and up.

    Args:
        blocks: Residual blocks.
        attention: As many attention blocks, or none.
        resample: What leads to the next level, if any: a residual block, or a module that takes no embedding.

    Attributes:
        cross_attention: As many blocks that attend to a text, or none; its network adds them.
    """

    def __init__(self, blocks: Sequence[ResBlock], attention: Sequence[nn.Module], resample: nn.Module | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.attention = nn.ModuleList(attention)
        self.resample = resample
        self.cross_attention = nn.ModuleList()

    def _attend(self, i: int, x: Tensor, text: Text | None) -> Tensor:
        if self.attention:
            x = self._run(self.attention[i], x)
        if self.cross_attention:
            x = self._run(self.cross_attention[i], x, text)
        return x


class DownLevel(BlocksLevel):
    """One resolution on the way down: residual blocks, then resampling if any.

    Each residual block is followed by attention and cross-attention, if any.

    Args:
        blocks: Residual blocks.
        attention: As many attention blocks, or none.
        resample: What leads to the next level, if any; see ``BlocksLevel``.
        image_input: Brings the image into the next level, if anything does; its network applies it.
    """

    def __init__(
        self,
        blocks: Sequence[ResBlock],
        attention: Sequence[nn.Module],
        resample: nn.Module | None,
        image_input: nn.Module | None = None,
    ) -> None:
        super().__init__(blocks, attention, resample)
        self.image_input = image_input

    def forward(self, x: Tensor, embedding: Tensor, text: Text | None = None) -> list[Tensor]:
        """Apply the level.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E].
            text: What cross-attention attends to; None without.

        Returns:
            Every result, for the way up; the last, [B, D, H, W], or [B, D, H / 2, W / 2] with resampling, goes on.
        """
        results: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = self._attend(i, self._run(block, x, embedding), text)
            results.append(x)
        if self.resample is not None:
            results.append(self._resample(self.resample, x, embedding))
        return results


class MiddleLevel(Level):
    """The lowest resolution: residual block, attention and cross-attention if any, residual block.

    Args:
        block1: First residual block.
        attention: Attention block, or None.
        block2: Second residual block.

    Attributes:
        cross_attention: A block that attends to a text, or None; its network adds it.
    """

    cross_attention: nn.Module | None

    def __init__(self, block1: ResBlock, attention: nn.Module | None, block2: ResBlock) -> None:
        super().__init__()
        self.block1 = block1
        self.attention = attention
        self.block2 = block2
        self.cross_attention = None

    def forward(self, x: Tensor, embedding: Tensor, text: Text | None = None) -> Tensor:
        """Map features [B, C, H, W], an activated embedding [B, E] and perhaps a text to features [B, C, H, W]."""
        x = self._run(self.block1, x, embedding)
        if self.attention is not None:
            x = self._run(self.attention, x)
        if self.cross_attention is not None:
            x = self._run(self.cross_attention, x, text)
        return self._run(self.block2, x, embedding)


class UpLevel(BlocksLevel):
    """One resolution on the way up: every residual block takes the features and one result of the way down."""

    def forward(self, x: Tensor, embedding: Tensor, skips: Sequence[Tensor], text: Text | None = None) -> Tensor:
        """Apply the level.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E].
            skips: Results of the way down, one a block.
            text: What cross-attention attends to; None without.

        Returns:
            Features, [B, D, H, W], or [B, D, 2 H, 2 W] with resampling.
        """
        for i, (block, skip) in enumerate(zip(self.blocks, skips, strict=True)):
            x = self._attend(i, self._run(apply_joined, block, x, skip, embedding), text)
        return x if self.resample is None else self._resample(self.resample, x, embedding)


def apply_joined(block: nn.Module, x: Tensor, skip: Tensor, embedding: Tensor) -> Tensor:
    """Apply a block to both, side by side, within what is computed anew: they are kept, and not their copy."""
    return block(torch.cat((x, skip), dim=1), embedding)
