"""Transformer blocks that an embedding of noise level and class scales and shifts."""

from torch import Tensor, nn
from torch.nn import functional as F

from .cross_attention import Attention, Text
from .initialization import initialize
from .levels import Level
from .patches import turned


def scaled_and_shifted(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x (1 + scale) + shift`` for a sequence [B, N, C], with one scale and shift [B, C] a sample."""
    return x * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


class SelfAttention(nn.Module):
    """``proj(softmax(q k^T / sqrt(d)) v)`` within a sequence, whose queries and keys may be normalized and turned.

    Args:
        channels: Number of channels, ``C``.
        num_heads: Number of heads, which divides ``C``.
        qk_norm: Normalize the queries and the keys of each head by their root mean square, with learned scales.

    Source: Vaswani et al. 2017, Section 3.2; Henry et al. 2020 and Dehghani et al. 2023 (normalized queries and keys).
    """

    def __init__(self, channels: int, *, num_heads: int, qk_norm: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = initialize(nn.Linear(channels, 3 * channels))
        self.norm_q, self.norm_k = (nn.RMSNorm(channels // num_heads, eps=1e-6) if qk_norm else None for _ in range(2))
        self.proj = initialize(nn.Linear(channels, channels))

    def forward(self, x: Tensor, mask: Tensor | None, rotation: Tensor | None) -> Tensor:
        """Map a sequence [B, N, C] to [B, N, C].

        Args:
            x: The sequence.
            mask: True where it may be attended to, bool [B, 1, 1, N]; None for everywhere.
            rotation: See ``turned``; None for none.
        """
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if self.norm_q is not None and self.norm_k is not None:
            wide = self.norm_q.weight.dtype
            q, k = self.norm_q(q.to(wide)).to(v.dtype), self.norm_k(k.to(wide)).to(v.dtype)
        if rotation is not None:
            q, k = turned(q, rotation), turned(k, rotation)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.proj(attended.transpose(1, 2).flatten(2))


class DiTBlock(Level):
    """Self-attention, cross-attention if any, and two layers with GELU, as a block with "adaLN-Zero".

    ``x + g1 attend(m1(x))``, then ``x + cross(norm(x), text)``, then ``x + g2 linear2(GELU(linear1(m2(x))))``, where
    ``m(x) = norm(x) (1 + scale) + shift`` and g1, g2 and both scales and shifts are ``modulate(e)``, zero at the start,
    so that the block starts as the identity. The norms have no weights.

    Args:
        channels: Number of channels, ``C``, also of the embedding.
        num_heads: Number of heads, which divides ``C``.
        mlp_ratio: Width between the two layers over ``C``.
        qk_norm: See ``SelfAttention``.
        norm_eps: Epsilon of the norms.
        mlp_norm_eps: That of the norm before the two layers.

    Attributes:
        cross_attention: Attention to a text, or None; its network adds it.

    Source: Peebles and Xie 2023, Section 3.2.
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int,
        mlp_ratio: float = 4.0,
        qk_norm: bool = False,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.channels, self.norm_eps, self.mlp_norm_eps = channels, norm_eps, mlp_norm_eps
        hidden = round(channels * mlp_ratio)
        self.attention = SelfAttention(channels, num_heads=num_heads, qk_norm=qk_norm)
        self.linear1 = initialize(nn.Linear(channels, hidden))
        self.linear2 = initialize(nn.Linear(hidden, channels))
        self.modulate = initialize(nn.Linear(channels, 6 * channels), zero=True)
        self.cross_attention: Attention | None = None

    def forward(
        self,
        x: Tensor,
        embedding: Tensor,
        mask: Tensor | None = None,
        rotation: Tensor | None = None,
        text: Text | None = None,
    ) -> Tensor:
        """Apply the block.

        Args:
            x: Sequence, [B, N, C].
            embedding: Activated embedding, [B, C].
            mask: See ``SelfAttention``.
            rotation: See ``SelfAttention``.
            text: What cross-attention attends to; None without.

        Returns:
            [B, N, C].
        """
        return self._run(self._apply_parts, x, embedding, mask, rotation, text)

    def _norm(self, x: Tensor, eps: float) -> Tensor:
        return F.layer_norm(x, (self.channels,), eps=eps)

    def _apply_parts(
        self, x: Tensor, embedding: Tensor, mask: Tensor | None, rotation: Tensor | None, text: Text | None
    ) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulate(embedding).chunk(6, dim=1)
        attended = self.attention(scaled_and_shifted(self._norm(x, self.norm_eps), scale1, shift1), mask, rotation)
        x = x + gate1.unsqueeze(1) * attended
        if self.cross_attention is not None and text is not None:
            x = x + self.cross_attention(self._norm(x, self.norm_eps), text)
        normed = scaled_and_shifted(self._norm(x, self.mlp_norm_eps), scale2, shift2)
        hidden = F.gelu(self.linear1(normed), approximate="tanh")
        return x + gate2.unsqueeze(1) * self.linear2(hidden)


class LastLayer(nn.Module):
    """``linear(norm(x) (1 + scale) + shift)`` with ``[shift, scale] = modulate(e)``; both layers start at zero.

    Args:
        channels: Number of channels, ``C``, also of the embedding.
        out_features: Values of each patch.
        norm_eps: Epsilon of the norm.

    Source: Peebles and Xie 2023, Section 3.2.
    """

    def __init__(self, channels: int, out_features: int, *, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm_eps = norm_eps
        self.modulate = initialize(nn.Linear(channels, 2 * channels), zero=True)
        self.linear = initialize(nn.Linear(channels, out_features), zero=True)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Map a sequence [B, N, C] and an activated embedding [B, C] to [B, N, out_features]."""
        shift, scale = self.modulate(embedding).chunk(2, dim=1)
        return self.linear(scaled_and_shifted(F.layer_norm(x, x.shape[2:], eps=self.norm_eps), scale, shift))
