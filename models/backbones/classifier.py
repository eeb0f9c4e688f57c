"""The classifier of noisy images whose gradient guides diffusion."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .adm import ADMBackbone, Resampling
from .blocks.embedding import ConditioningEmbedding
from .blocks.initialization import initialize
from .blocks.resolutions import ImageSize, height_and_width


class AttentionPool(nn.Module):
    """One vector from an image: what the mean of all pixels, attending to itself and to all pixels, finds.

    The tokens are the mean and the pixels, in reading order, plus a learned position each; the answer is the first
    token's ``proj(softmax(q k^T / sqrt(d)) v)``. The outputs of ``qkv`` are ordered [(q, k, v), head, channel].

    Args:
        image_size: Height and width, one number or ``(H, W)``.
        channels: Number of channels, ``C``.
        head_channels: Channels of one head, ``d``; None for one head of all.
        out_features: Features of the result, ``F``.

    Raises:
        ValueError: ``head_channels`` does not divide ``channels``.

    Source: Radford et al. 2021, Section 2.4; Dhariwal and Nichol 2021, Section 4.3.
    """

    def __init__(self, image_size: ImageSize, channels: int, *, head_channels: int | None, out_features: int) -> None:
        super().__init__()
        head_channels = channels if head_channels is None else head_channels
        if head_channels < 1 or channels % head_channels:
            raise ValueError(f"head_channels must divide {channels} channels, got {head_channels}; use {channels}")
        self.num_heads = channels // head_channels
        height, width = height_and_width(image_size)
        self.position = nn.Parameter(torch.randn(1 + height * width, channels) / channels**0.5)
        self.qkv = initialize(nn.Linear(channels, 3 * channels))
        self.proj = initialize(nn.Linear(channels, out_features))

    def forward(self, x: Tensor) -> Tensor:
        """Map features [B, C, H, W] to [B, F]."""
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat((tokens.mean(1, keepdim=True), tokens), dim=1) + self.position
        qkv = self.qkv(tokens).unflatten(2, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q[:, :, :1], k, v)
        return self.proj(attended.flatten(1))


class EncoderClassifier(ADMBackbone):
    """Logits of p(class | x_t, t): the way down of an ``ADM``, its middle, and attention pooling.

    The defaults at ``image_size=64`` with ``num_res_blocks=4`` are the published classifier of guided-diffusion.

    Args:
        image_size: Height and width, one number or ``(H, W)``, divisible by ``2^(levels - 1)``.
        in_channels: Channels of the data, ``C``.
        num_classes: Number of classes, ``K``.
        channels: Features of the noise embedding, and the width that ``channel_mult`` multiplies; even.
        channel_mult: Width of each level over ``channels``, fractions allowed; one entry a level.
        num_res_blocks: Residual blocks a level.
        attention_resolutions: Resolutions with attention after every residual block. The middle always has one. A
            level's resolution is its shorter side.
        head_channels: Channels of one head; None for one head of all.
        dropout: Probability inside the residual blocks, in [0, 1).
        scale_shift_norm: Let the embedding scale and shift the second norm instead of adding before it.
        resampling: "residual": residual blocks that average pixels; "convolution": strided convolutions.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.

    Source: Dhariwal and Nichol 2021, Section 4.3 and Appendix I, Table 12.
    """

    fixed: ClassVar[Mapping[str, Any]] = {
        "num_heads": 1,
        "floor_heads": False,
        "symmetric_downsample": True,
        "norm_eps": 1e-5,
        "norm_groups": 32,
        "norm_group_channels": 1,
    }

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        num_classes: int = 1000,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        head_channels: int | None = 64,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resampling: Resampling = "residual",
    ) -> None:
        super().__init__()
        self._set_shape()
        self.embed = ConditioningEmbedding(channels, 4 * channels, kind="cos_first")
        self.conv_in = initialize(nn.Conv2d(in_channels, self.widths[0], 3, padding=1))
        self.down = self._build_down(self.widths[0], self._attends(attention_resolutions))
        self.middle = self._build_middle(self._attention)
        self.up = nn.ModuleList()
        self.norm_out = self._norm(self.widths[-1])
        self.pool = AttentionPool(
            self.sizes[-1], self.widths[-1], head_channels=head_channels, out_features=num_classes
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """Apply the network.

        Args:
            x: Noisy data, [B, C, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.

        Returns:
            Logits, [B, K], in the dtype of ``x``.

        Raises:
            ValueError: A shape or dtype is not what the network was built for.
        """
        self._check_input(x)
        embedding = self.embed(c_noise, None, x.shape[0])
        hidden = self.conv_in(x)
        for level in self.down:
            hidden = level(hidden, embedding)[-1]
        hidden = self.middle(hidden, embedding)
        return self.pool(F.silu(self.norm_out(hidden))).to(x.dtype)
