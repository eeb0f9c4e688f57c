"""Transformers of pixels, in a residual branch of a U-Net: self-attention, cross-attention, feed-forward layers."""

from torch import Tensor, nn
from torch.nn import functional as F

from .cross_attention import Attention, Text
from .initialization import initialize
from .layers import NormFactory, count_heads
from .normalization import group_norm

_WIDENING = 4


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and a gated feed-forward layer, each added to what is normalized for it.

    ``x + attend(norm(x), norm(x))``, then ``x + attend(norm(x), tokens)``, then ``x + contract(h * GELU(gate))`` with
    ``h, gate = expand(norm(x))``, each 4 C wide. Tokens are attended to as they are, without a norm. Each branch's last
    layer starts at zero.

    Args:
        channels: Number of channels, ``C``.
        features: Features of a token, ``F``.
        num_heads: Number of heads, which divides ``C``.

    Source: Rombach et al. 2022, Appendix E.2.1; Shazeer 2020 (GEGLU).
    """

    def __init__(self, channels: int, features: int, *, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(channels) for _ in range(3))
        self.self_attention = Attention(channels, channels, num_heads=num_heads)
        self.cross_attention = Attention(channels, features, num_heads=num_heads)
        self.expand = initialize(nn.Linear(channels, 2 * _WIDENING * channels))
        self.contract = initialize(nn.Linear(_WIDENING * channels, channels), zero=True)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """Map pixels [B, N, C] and a text to pixels [B, N, C]."""
        normed = self.norm1(x)
        x = x + self.self_attention(normed, Text(normed))
        x = x + self.cross_attention(self.norm2(x), text)
        hidden, gate = self.expand(self.norm3(x)).chunk(2, dim=-1)
        return x + self.contract(hidden * F.gelu(gate))


class TransformerBlock(nn.Module):
    """``x + proj_out(layers(proj_in(norm(x))))`` over all pixels, with layers that attend to a text too.

    ``proj_out`` starts at zero, so that the block starts as the identity.

    Args:
        channels: Number of channels, ``C``.
        features: Features of a token, ``F``.
        depth: Number of layers.
        num_heads: Number of heads; ignored when ``head_channels`` is given.
        head_channels: Channels of one head, ``d``.
        norm: Builds the normalization of a number of channels.

    Raises:
        ValueError: The heads do not divide the channels.

    Source: Rombach et al. 2022, Appendix E.2.1.
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        depth: int = 1,
        num_heads: int = 1,
        head_channels: int | None = None,
        norm: NormFactory = group_norm,
    ) -> None:
        super().__init__()
        num_heads = count_heads(channels, num_heads=num_heads, head_channels=head_channels)
        self.norm = norm(channels)
        self.proj_in = initialize(nn.Linear(channels, channels))
        self.layers = nn.ModuleList(TransformerLayer(channels, features, num_heads=num_heads) for _ in range(depth))
        self.proj_out = initialize(nn.Linear(channels, channels), zero=True)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """Map features [B, C, H, W] and a text to features [B, C, H, W]."""
        pixels = self.proj_in(self.norm(x).flatten(2).transpose(1, 2))
        for layer in self.layers:
            pixels = layer(pixels, text)
        return x + self.proj_out(pixels).transpose(1, 2).unflatten(2, x.shape[2:])
