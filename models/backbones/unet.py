"""The U-Net of denoising diffusion: Ho et al.'s network, with the options of Improved DDPM."""

from collections.abc import Sequence
from functools import partial

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks.checks import check_input
from .blocks.embedding import ConditioningEmbedding, EmbeddingKind
from .blocks.initialization import initialize
from .blocks.input_features import InputFourierFeatures
from .blocks.layers import AttentionBlock, NormFactory, ResBlock
from .blocks.normalization import group_norm
from .blocks.resampling import Downsample, Upsample
from .blocks.resolutions import (
    ImageSize,
    check_attention_resolutions,
    height_and_width,
    level_resolutions,
    one_or_pair,
)
from .blocks.unet_levels import (
    DownLevel,
    Level,
    MiddleLevel,
    UpLevel,
)


class UNet(nn.Module):
    """The network of Ho et al. 2020: the defaults at ``image_size=32`` are theirs for CIFAR-10, 35,746,307 parameters.

    Level ``i`` works at resolution ``image_size / 2^i`` with ``channels * channel_mult[i]`` channels;
    ``down[i]`` and ``up[i]`` are its two halves. A new network returns zeros, since its last layer starts at zero.
    Set ``gradient_checkpointing`` to trade time for memory.

    For the CIFAR-10 network of Improved DDPM: ``num_res_blocks=3, attention_resolutions=(16, 8), num_heads=4,
    dropout=0.3, scale_shift_norm=True, learned_variance=True, norm_eps=1e-5, embedding="cos_first",
    symmetric_downsample=True``.

    Args:
        image_size: Height and width, one number or ``(H, W)``, divisible by ``2^(levels - 1)``.
        in_channels: Channels of the data, ``C``.
        channels: Width of the first level, even.
        channel_mult: Width of each level over ``channels``; one entry a level.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attention_resolutions: Resolutions with attention after every residual block. The middle always has one. A
            level's resolution is its shorter side.
        num_heads: Heads of every attention block; ignored when ``head_channels`` is given.
        head_channels: Channels of one head.
        dropout: Probability inside the residual blocks, in [0, 1).
        scale_shift_norm: Let the embedding scale and shift the second norm instead of adding before it.
        learned_variance: Return ``2 C`` channels, the last ``C`` being the raw variance interpolation.
        num_classes: Number of classes, or None for an unconditional network.
        null_class: Take the label -1, no class, too: for a network that is trained without its class now and then.
        norm_eps: Epsilon of the group norms.
        norm_groups: Groups of the norms; see ``group_norm`` for layers that it does not divide. With the default 32,
            blocks of exactly 32 channels are blind to an additive embedding.
        embedding: Embedding of the noise label: ``sin_first`` (Ho et al.), ``cos_first`` (Improved DDPM) or
            ``fourier`` (for ln sigma).
        symmetric_downsample: Pad every side before the strided convolutions, as Improved DDPM.
        input_frequencies: Exponents ``n`` of Fourier features ``sin(2^n pi x), cos(2^n pi x)`` of the input, such as
            (7, 8) (Kingma et al. 2021); see ``InputFourierFeatures``.
        outputs_per_channel: Outputs for each channel of the data, above 1 where a pixel's answer is a distribution.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.

    Source: Ho et al. 2020, Appendix B; Nichol and Dhariwal 2021; Dhariwal and Nichol 2021.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        num_heads: int = 1,
        head_channels: int | None = None,
        dropout: float = 0.0,
        scale_shift_norm: bool = False,
        learned_variance: bool = False,
        num_classes: int | None = None,
        null_class: bool = False,
        norm_eps: float = 1e-6,
        norm_groups: int = 32,
        embedding: EmbeddingKind = "sin_first",
        symmetric_downsample: bool = False,
        input_frequencies: Sequence[int] = (),
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__()
        _check_positive(
            in_channels=in_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            channel_mult=min(channel_mult, default=0),
            outputs_per_channel=outputs_per_channel,
        )
        resolutions = level_resolutions(image_size, len(channel_mult))
        check_attention_resolutions(attention_resolutions, resolutions)
        self._size = height_and_width(image_size)
        self.image_size = one_or_pair(*self._size)
        self.num_res_blocks = num_res_blocks
        self.num_classes = num_classes
        self.in_channels = in_channels
        self.out_channels = in_channels * (outputs_per_channel + learned_variance)

        norm: NormFactory = partial(group_norm, eps=norm_eps, max_groups=norm_groups)
        embedding_dim = 4 * channels
        res_block = partial(
            ResBlock, embedding_dim=embedding_dim, dropout=dropout, scale_shift=scale_shift_norm, norm=norm
        )
        attend = partial(AttentionBlock, num_heads=num_heads, head_channels=head_channels, norm=norm)
        widths = [channels * mult for mult in channel_mult]
        attends = [resolution in attention_resolutions for resolution in resolutions]

        self.embed = ConditioningEmbedding(
            channels, embedding_dim, num_classes=num_classes, null_class=null_class, kind=embedding
        )
        self.input_features = InputFourierFeatures(input_frequencies)
        self.conv_in = initialize(nn.Conv2d(self.input_features.out_channels(in_channels), channels, 3, padding=1))

        self.down = nn.ModuleList()
        skip_widths, width = [channels], channels
        for out, attending in zip(widths, attends, strict=True):
            blocks = [res_block(width if j == 0 else out, out) for j in range(num_res_blocks)]
            width = out
            last = len(self.down) == len(widths) - 1
            resample = None if last else Downsample(out, symmetric=symmetric_downsample)
            self.down.append(DownLevel(blocks, [attend(out) for _ in blocks if attending], resample))
            skip_widths += [out] * (num_res_blocks + (not last))

        self.middle = MiddleLevel(res_block(width, width), attend(width), res_block(width, width))

        up: list[UpLevel] = []
        for out, attending in reversed(list(zip(widths, attends, strict=True))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(res_block(width + skip_widths.pop(), out))
                width = out
            resample = Upsample(out) if len(up) < len(widths) - 1 else None
            up.append(UpLevel(blocks, [attend(out) for _ in blocks if attending], resample))
        self.up = nn.ModuleList(reversed(up))

        self.norm_out = norm(width)
        self.conv_out = initialize(nn.Conv2d(width, self.out_channels, 3, padding=1), zero=True)

    @property
    def stages(self) -> list[Level]:
        """The levels in the order in which they are applied: down, middle, up."""
        return [level for level in (*self.down, self.middle, *reversed(self.up)) if isinstance(level, Level)]

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``Level``."""
        return self.middle.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for level in self.stages:
            level.gradient_checkpointing = on

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_class``; None without classes.

        Returns:
            The prediction, [B, C, H, W], or [B, 2 C, H, W] with ``learned_variance``: the prediction, then the raw
            variance interpolation. It has the dtype of ``x``, under autocast too.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        check_input(x, (self.in_channels, *self._size), self.conv_in.weight)
        embedding = self.embed(c_noise, cond, x.shape[0])
        hidden = self.conv_in(self.input_features(x).to(x.dtype))
        skips = [hidden]
        for level in self.down:
            skips += level(skips[-1], embedding)
        hidden = self.middle(skips[-1], embedding)
        for level in reversed(self.up):
            hidden = level(hidden, embedding, [skips.pop() for _ in range(self.num_res_blocks + 1)])
        return self.conv_out(F.silu(self.norm_out(hidden))).to(x.dtype)


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; raise it")
