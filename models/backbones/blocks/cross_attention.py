"""Cross-attention: pixels that look up what a text, or another sequence of tokens, says."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import initialize
from .layers import NormFactory, count_heads
from .normalization import group_norm


class Text(NamedTuple):
    """Tokens as the blocks of a network take them; see ``read_text``.

    Attributes:
        tokens: [B, L, F], zeros where the mask is False.
        mask: True where a pixel may look, bool [B, 1, 1, L], with a token for every sample; None for everywhere.
        present: True for samples that have a text, bool [B, 1, 1]; None for all.
    """

    tokens: Tensor
    mask: Tensor | None = None
    present: Tensor | None = None


def read_text(
    x: Tensor, tokens: Tensor | None, mask: Tensor | None, *, features: int, null_condition: bool
) -> Text | None:
    """Check a batch's tokens, and make of them what can be attended to.

    Where the mask is False there may be anything, NaN too: it is replaced by zeros, since 0 times NaN is NaN. A sample
    without any token would divide 0 by 0 in its softmax: it is let look at the zeros, and what it finds is dropped.

    Args:
        x: Noisy data, [B, ...].
        tokens: [B, L, F], of order 1; None of a network that takes none.
        mask: True where a token is one, bool [B, L], with ``null_condition`` all False where a sample has no text; None
            where all are.
        features: F; 0 for a network that takes no tokens.
        null_condition: Take samples without text too.

    Returns:
        The text, or None of a network that takes none.

    Raises:
        ValueError: If tokens are missing or unexpected, or a shape or type is wrong; on the CPU, not compiled, also if
            a token is NaN, or there is none of a sample that must have some: elsewhere the answer is NaN, or what the
            network says without text.
    """
    if not features:
        if tokens is not None or mask is not None:
            raise ValueError("tokens must be None: the network takes no tokens; build it with cond_tokens=...")
        return None
    if tokens is None or tokens.ndim != 3 or not tokens.shape[1] or tokens.shape[::2] != (len(x), features):
        got = None if tokens is None else list(tokens.shape)
        raise ValueError(
            f"the condition's tokens must have shape [{len(x)}, L, {features}], got {got}; pass Condition(tokens=...)"
        )
    if mask is not None and (mask.shape != tokens.shape[:2] or mask.dtype != torch.bool):
        raise ValueError(
            f"the condition's mask must be bool {list(tokens.shape[:2])} as tokens are, got {mask.dtype} "
            f"{list(mask.shape)}; pass Condition(mask=...)"
        )
    if mask is not None:
        tokens = torch.where(mask[..., None], tokens, 0.0)
    # nothing is read back from a GPU to check
    if tokens.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_values(tokens, mask, null_condition=null_condition)
    tokens = tokens.to(x.dtype)
    if mask is None:
        return Text(tokens)
    present = mask.any(1, keepdim=True)
    return Text(tokens, (mask | ~present)[:, None, None], present[..., None])


def _check_values(tokens: Tensor, mask: Tensor | None, *, null_condition: bool) -> None:
    nan = tokens.isnan().flatten(1).any(1)
    if bool(nan.any()):
        raise ValueError(
            f"the condition's tokens must have no NaN, got some in sample {int(nan.nonzero()[0])}; give each sample "
            "its tokens, and a mask that is False where there are none"
        )
    if mask is not None and not null_condition and not bool(mask.any(1).all()):
        raise ValueError(
            f"the condition's mask must be True somewhere, got none in sample {int((~mask.any(1)).nonzero()[0])} (the "
            "network was never trained without text); give each sample its text"
        )


class Attention(nn.Module):
    """``proj(softmax(q k^T / sqrt(d)) v)`` with queries ``q = q(x)`` and ``k, v = kv(tokens)``, that they look up.

    The outputs of ``kv`` are ordered [(k, v), head, channel]. Of a sample without text it is 0, with a gradient of 0.

    PyTorch's fused kernels have first derivatives in reverse mode only; see ``AttentionBlock``.

    Args:
        channels: Number of channels of the queries, ``C``.
        features: Features of a token, ``F``.
        num_heads: Number of heads, which divides ``C``.
        bias: Add a bias to queries, keys and values.

    Source: Vaswani et al. 2017, Section 3.2; Rombach et al. 2022, Section 3.3.
    """

    def __init__(self, channels: int, features: int, *, num_heads: int, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = initialize(nn.Linear(channels, channels, bias=bias))
        self.kv = nn.Linear(features, 2 * channels, bias=bias)
        for half in self.kv.weight.detach().chunk(2):
            nn.init.xavier_uniform_(half)
        if bias:
            nn.init.zeros_(self.kv.bias)
        self.proj = initialize(nn.Linear(channels, channels), zero=True)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """Map queries [B, N, C] and a text to [B, N, C]."""
        split = (self.q(x), *self.kv(text.tokens).chunk(2, dim=-1))
        q, k, v = (part.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for part in split)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=text.mask)
        found = self.proj(attended.transpose(1, 2).flatten(2))
        return found if text.present is None else torch.where(text.present, found, 0.0)


class CrossAttentionBlock(nn.Module):
    """Attention of all pixels to tokens, ``x + attend(norm(x), norm_tokens(tokens))`` with ``Attention``.

    Its last layer starts at zero, so that the block starts as the identity; of a sample without text it is the
    identity always. Neither the number of masked tokens nor what they hold makes a difference.

    Args:
        channels: Number of channels, ``C``.
        features: Features of a token, ``F``.
        num_heads: Number of heads; ignored when ``head_channels`` is given.
        head_channels: Channels of one head, ``d``.
        norm: Builds the normalization of a number of channels.

    Raises:
        ValueError: The heads do not divide the channels.

    Source: Rombach et al. 2022, Section 3.3; Saharia et al. 2022 (Imagen), Section 2.3 (normalized tokens).
    """

    def __init__(
        self,
        channels: int,
        features: int,
        *,
        num_heads: int = 1,
        head_channels: int | None = None,
        norm: NormFactory = group_norm,
    ) -> None:
        super().__init__()
        self.norm = norm(channels)
        self.norm_tokens = nn.LayerNorm(features)
        num_heads = count_heads(channels, num_heads=num_heads, head_channels=head_channels)
        self.attend = Attention(channels, features, num_heads=num_heads)

    def forward(self, x: Tensor, text: Text) -> Tensor:
        """Map features [B, C, H, W] and a text to features [B, C, H, W]."""
        pixels = self.norm(x).flatten(2).transpose(1, 2)
        found = self.attend(pixels, text._replace(tokens=self.norm_tokens(text.tokens)))
        return x + found.transpose(1, 2).unflatten(2, x.shape[2:])
