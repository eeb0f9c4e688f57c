"""The layers of Ho et al.'s network and of its successors: residual and attention blocks."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .initialization import initialize
from .normalization import group_norm

NormFactory = Callable[[int], nn.Module]


class ResBlock(nn.Module):
    """Residual block, ``s (skip(r(x)) + conv2(dropout(SiLU(h))))`` where ``h`` carries the time embedding ``e``.

    ``h = norm2(conv1(r(SiLU(norm1(x)))) + project(e))`` as in Ho et al., or with ``scale_shift``
    ``h = norm2(conv1(r(SiLU(norm1(x))))) (1 + scale) + shift`` with ``[scale, shift] = project(e)`` as in Improved
    DDPM. ``r`` is the resampling, or nothing; ``s`` is 1/sqrt(2) with ``rescale``, so that the variance does not grow
    from block to block, else 1. ``conv2`` starts at zero, so that the block starts as ``skip``: the identity, or a 1x1
    convolution where the number of channels changes.

    Args:
        in_channels: Channels in, ``C``.
        out_channels: Channels out, ``D``.
        embedding_dim: Features of the embedding, ``E``; None for a block that takes none, as those of autoencoders.
        dropout: Probability, in [0, 1).
        scale_shift: Let the embedding scale and shift instead of adding.
        norm: Builds the normalization of a number of channels.
        resample: Applied to both branches; without parameters.
        skip_conv: Have the 1x1 convolution also where the number of channels stays.
        rescale: Divide by sqrt(2).

    Raises:
        ValueError: ``dropout`` is outside [0, 1).

    Source: Ho et al. 2020, Appendix B; Nichol and Dhariwal 2021, Section 3 (scale and shift); Song et al. 2021,
        Appendix H.2, and Dhariwal and Nichol 2021, Section 3 (resampling, after Brock et al. 2019, BigGAN; rescaling,
        after Karras et al. 2020, StyleGAN2).
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int | None,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        norm: NormFactory = group_norm,
        resample: nn.Module | None = None,
        skip_conv: bool = False,
        rescale: bool = False,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.scale_shift = scale_shift
        self.resample = resample
        self.scale = math.sqrt(0.5) if rescale else None
        self.norm1 = norm(in_channels)
        self.conv1 = initialize(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        if embedding_dim is not None:
            self.project = initialize(nn.Linear(embedding_dim, out_channels * (2 if scale_shift else 1)))
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = initialize(nn.Conv2d(out_channels, out_channels, 3, padding=1), zero=True)
        same = in_channels == out_channels and not skip_conv
        self.skip = nn.Identity() if same else initialize(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Apply the block.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E]: the SiLU before the projection is the caller's, once a network. None
                for a block that takes none.

        Returns:
            Features, [B, D, H', W'], resampled if the block resamples.
        """
        hidden = F.silu(self.norm1(x))
        if self.resample is not None:
            hidden, x = self.resample(hidden), self.resample(x)
        hidden = self.conv1(hidden)
        projected = None if embedding is None else self.project(embedding)[:, :, None, None]
        if projected is None:
            hidden = self.norm2(hidden)
        elif self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + projected)
        out = self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))
        return out if self.scale is None else out * self.scale


def count_heads(channels: int, *, num_heads: int, head_channels: int | None) -> int:
    """Number of heads of an attention block.

    Args:
        channels: Number of channels.
        num_heads: Number of heads; ignored when ``head_channels`` is given.
        head_channels: Channels of one head, or None.

    Raises:
        ValueError: The heads do not divide the channels.
    """
    name, count = ("num_heads", num_heads) if head_channels is None else ("head_channels", head_channels)
    if count < 1 or channels % count:
        divisors = [str(d) for d in range(1, channels + 1) if channels % d == 0]
        raise ValueError(f"{name} must divide {channels} channels, got {count}; use one of {', '.join(divisors)}")
    return num_heads if head_channels is None else channels // head_channels


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, ``x + proj(softmax(q k^T / sqrt(d)) v)`` with ``q, k, v = qkv(norm(x))``.

    The outputs of ``qkv`` are ordered [(q, k, v), head, channel]. ``proj`` starts at zero, so that the block
    starts as the identity.

    Compiled for a CPU, bfloat16 goes through two products and a softmax between them, which for such numbers of pixels
    is twice as fast as the fused kernel and whose memory, a number for each pair of pixels, is then of no account.

    PyTorch's fused kernels have first derivatives in reverse mode only. Forward mode (``torch.func.jvp``) and second
    derivatives need ``with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):`` around the call.

    Args:
        channels: Number of channels, ``C``.
        num_heads: Number of heads; ignored when ``head_channels`` is given.
        head_channels: Channels of one head, ``d``.
        norm: Builds the normalization of a number of channels.

    Raises:
        ValueError: The heads do not divide the channels.

    Source: Ho et al. 2020, Appendix B (one head); Dhariwal and Nichol 2021, Section 3 (several).
    """

    def __init__(
        self,
        channels: int,
        *,
        num_heads: int = 1,
        head_channels: int | None = None,
        norm: NormFactory = group_norm,
    ) -> None:
        super().__init__()
        self.num_heads = count_heads(channels, num_heads=num_heads, head_channels=head_channels)
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = initialize(nn.Linear(channels, channels), zero=True)
        # Each third is a layer of its own in Ho et al.'s network; the fan of the fused one would make it too small.
        for third in self.qkv.weight.detach().chunk(3):
            nn.init.xavier_uniform_(third)
        nn.init.zeros_(self.qkv.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features, [B, C, H, W].

        Returns:
            Features, [B, C, H, W].
        """
        batch, channels, height, width = x.shape
        # In channels_last memory these moves are views; the linear layer leaves q, k and v with unit stride along
        # the channels of a head, which the fused attention kernels need.
        tokens = self.norm(x).flatten(2).transpose(1, 2)
        qkv = self.qkv(tokens).view(batch, height * width, 3, self.num_heads, channels // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        if (
            torch.compiler.is_compiling()
            and x.device.type == "cpu"
            and q.dtype == torch.bfloat16
            and tokens.shape[1] <= 1024
        ):
            attended = _attend_by_products(q, k, v)
        else:
            attended = F.scaled_dot_product_attention(q, k, v)
        attended = attended.transpose(1, 2).flatten(2)
        return x + self.proj(attended).transpose(1, 2).unflatten(2, (height, width))


def _attend_by_products(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of [B, heads, N, d], with the softmax in float32 and its division left to the end."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    weights = torch.exp(scores.float() - scores.float().amax(-1, keepdim=True))
    return ((weights.to(v.dtype) @ v).float() / weights.sum(-1, keepdim=True)).to(v.dtype)
