"""The layers of Ho et al.'s network and of its successors: residual and attention blocks, resampling."""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Weighted = TypeVar("Weighted", nn.Conv2d, nn.Linear)
NormFactory = Callable[[int], nn.Module]


def group_norm(channels: int, eps: float = 1e-6, *, max_groups: int = 32) -> nn.GroupNorm:
    """Group normalization with Ho et al.'s 32 groups, or a fitting number of groups for narrow networks.

    Where 32 divides the channels there are 32 groups, always. Elsewhere it is the largest divisor of ``channels``
    that leaves at least four channels a group (one group below eight channels), and at most 32.

    A group of one channel cancels whatever is constant over that channel, an additive time embedding included: a
    residual block of exactly 32 channels sees the time only with ``scale_shift`` or with fewer ``max_groups``.

    Args:
        channels: Number of channels.
        eps: Added to the variance; 1e-6 in Ho et al.'s network, 1e-5 in Improved DDPM.
        max_groups: Replaces the number 32 above.

    Returns:
        The layer, with unit gain and zero bias.

    Raises:
        ValueError: ``channels`` or ``max_groups`` is below 1.

    Source: Wu and He 2018; Ho et al. 2020, Appendix B.
    """
    if channels < 1 or max_groups < 1:
        raise ValueError(f"channels and groups must be at least 1, got {channels} channels and {max_groups} groups")
    groups = max_groups
    if channels % groups:
        limit = max(1, min(max_groups, channels // 4))
        groups = next(count for count in range(limit, 0, -1) if channels % count == 0)
    return nn.GroupNorm(groups, channels, eps=eps)


def initialize(layer: Weighted, *, zero: bool = False) -> Weighted:
    """Initialise a layer as Ho et al.: weights uniform with variance 2 / (fan_in + fan_out), biases zero.

    Args:
        layer: A convolution or linear layer, changed in place.
        zero: Make the weights zero as well, for the last layer of a residual branch (Ho et al.: scale 1e-10).

    Returns:
        The same layer.

    Source: Ho et al. 2020, released code (``variance_scaling(1, "fan_avg", "uniform")``).
    """
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Residual block, ``skip(x) + conv2(dropout(SiLU(h)))`` where ``h`` carries the time embedding ``e``.

    ``h = norm2(conv1(SiLU(norm1(x))) + project(e))`` as in Ho et al., or with ``scale_shift``
    ``h = norm2(conv1(SiLU(norm1(x)))) (1 + scale) + shift`` with ``[scale, shift] = project(e)`` as in Improved DDPM.
    ``conv2`` starts at zero, so that the block starts as ``skip``: the identity, or a 1x1 convolution where the
    number of channels changes.

    Args:
        in_channels: Channels in, ``C``.
        out_channels: Channels out, ``D``.
        embedding_dim: Features of the embedding, ``E``.
        dropout: Probability, in [0, 1).
        scale_shift: Let the embedding scale and shift instead of adding.
        norm: Builds the normalization of a number of channels.

    Raises:
        ValueError: ``dropout`` is outside [0, 1).

    Source: Ho et al. 2020, Appendix B; Nichol and Dhariwal 2021, Section 3.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_dim: int,
        *,
        dropout: float = 0.0,
        scale_shift: bool = False,
        norm: NormFactory = group_norm,
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        self.scale_shift = scale_shift
        self.norm1 = norm(in_channels)
        self.conv1 = initialize(nn.Conv2d(in_channels, out_channels, 3, padding=1))
        self.project = initialize(nn.Linear(embedding_dim, out_channels * (2 if scale_shift else 1)))
        self.norm2 = norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = initialize(nn.Conv2d(out_channels, out_channels, 3, padding=1), zero=True)
        same = in_channels == out_channels
        self.skip = nn.Identity() if same else initialize(nn.Conv2d(in_channels, out_channels, 1))

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """Apply the block.

        Args:
            x: Features, [B, C, H, W].
            embedding: Activated embedding, [B, E]: the SiLU before the projection is the caller's, once a network.

        Returns:
            Features, [B, D, H, W].
        """
        hidden = self.conv1(F.silu(self.norm1(x)))
        projected = self.project(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = projected.chunk(2, dim=1)
            hidden = self.norm2(hidden) * (1 + scale) + shift
        else:
            hidden = self.norm2(hidden + projected)
        return self.skip(x) + self.conv2(self.dropout(F.silu(hidden)))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, ``x + proj(softmax(q k^T / sqrt(d)) v)`` with ``q, k, v = qkv(norm(x))``.

    The rows of ``qkv.weight`` are ordered [(q, k, v), head, channel]. ``proj`` starts at zero, so that the block
    starts as the identity.

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
        name, count = ("num_heads", num_heads) if head_channels is None else ("head_channels", head_channels)
        if count < 1 or channels % count:
            divisors = [str(d) for d in range(1, channels + 1) if channels % d == 0]
            raise ValueError(f"{name} must divide {channels} channels, got {count}; use one of {', '.join(divisors)}")
        self.num_heads = num_heads if head_channels is None else channels // head_channels
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
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.proj(attended).transpose(1, 2).unflatten(2, (height, width))


class Downsample(nn.Module):
    """Halve the resolution by a 3x3 convolution of stride 2.

    Ho et al.'s network, written in TensorFlow, pads "SAME": zeros below and to the right only, so that the kernel at
    output (i, j) covers inputs 2i .. 2i + 2. PyTorch ports by OpenAI pad every side (``symmetric``): 2i - 1 .. 2i + 1.

    Args:
        channels: Number of channels, ``C``.
        symmetric: Pad every side instead.

    Source: Ho et al. 2020, Appendix B; Nichol and Dhariwal 2021, released code.
    """

    def __init__(self, channels: int, *, symmetric: bool = False) -> None:
        super().__init__()
        self.symmetric = symmetric
        self.conv = initialize(nn.Conv2d(channels, channels, 3, stride=2, padding=1 if symmetric else 0))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, H / 2, W / 2]."""
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double the resolution: each pixel repeated 2x2, then a 3x3 convolution.

    Args:
        channels: Number of channels, ``C``.

    Source: Ho et al. 2020, Appendix B.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = initialize(nn.Conv2d(channels, channels, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C, 2 H, 2 W]."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def check_input(x: Tensor, expected: tuple[int, ...], weight: Tensor) -> None:
    """Refuse a batch that a network cannot take, in one line.

    Args:
        x: The batch, [B, ...].
        expected: Shape of one sample.
        weight: A parameter of the network, for its dtype.

    Raises:
        ValueError: The shape of a sample, or outside autocast the dtype, is not the network's.
    """
    if x.ndim != len(expected) + 1 or tuple(x.shape[1:]) != expected:
        shape = ", ".join(str(size) for size in expected)
        raise ValueError(f"x must have shape [B, {shape}], got {list(x.shape)}; resize x or rebuild the network")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x must be {weight.dtype} like the network, got {x.dtype}; pass x.to({weight.dtype})")
