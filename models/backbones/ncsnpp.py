"""NCSN++ and DDPM++, the networks of Song et al. 2021, with which EDM's SongUNet is one family."""

from collections.abc import Sequence
from functools import partial
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .blocks.checks import check_input
from .blocks.fir import ConvUpsample, make_conv_downsample, make_resampler
from .blocks.initialization import initialize
from .blocks.layers import AttentionBlock, group_norm
from .blocks.ncsnpp_blocks import NoiseEmbedding, NoiseLabelEmbedding, RescaledResBlock
from .blocks.ncsnpp_levels import (
    InputResidual,
    InputSkip,
    OutputSkip,
    PyramidDownLevel,
    PyramidLevel,
    PyramidMiddleLevel,
    PyramidUpLevel,
    RescaledAttention,
)
from .blocks.resolutions import (
    ImageSize,
    check_attention_resolutions,
    height_and_width,
    level_resolutions,
    one_or_pair,
)

Block = Literal["biggan", "ddpm"]
InputPyramid = Literal["none", "residual", "skip"]
OutputPyramid = Literal["none", "skip"]


class NCSNpp(nn.Module):
    """The networks of Song et al. 2021: the defaults at ``image_size=32`` are their NCSN++ for CIFAR-10.

    Level ``i`` works at resolution ``image_size / 2^i`` with ``channels * channel_mult[i]`` channels; ``down[i]`` and
    ``up[i]`` are its two halves. A new network returns zeros, since its last layer starts at zero. The input is data
    in [-1, 1], scaled as its training says, and the output is not divided by sigma.

    ============================  ====================================================================================
    NCSN++ for VE                 ``embedding="fourier"``, told ``ln(sigma)`` of data in [0, 1]
    NCSN++ for VP and sub-VP      the defaults
    DDPM++                        ``fir_kernel=None, input_pyramid="none"``
    "deep"                        ``num_res_blocks=8``
    NCSN++ at 1024x1024           ``embedding="fourier", input_pyramid="skip", output_pyramid="skip"``
    score_sde_pytorch's ``ddpm``  ``block="ddpm", fir_kernel=None, input_pyramid="none", rescale=False,
                                  min_group_channels=1``; one attention a level on the way up, unlike ``UNet``
    EDM's ``ddpmpp``              ``channels=128, channel_mult=(2, 2, 2), fir_kernel=None, input_pyramid="none"``
    EDM's ``ncsnpp``              ``channels=128, channel_mult=(2, 2, 2), embedding="fourier"``
    ============================  ====================================================================================

    Args:
        image_size: Height and width, one number or ``(H, W)``, divisible by ``2^(levels - 1)``.
        in_channels: Channels of the data, ``C``.
        channels: Width of the first level, even.
        channel_mult: Width of each level over ``channels``; one entry a level.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attention_resolutions: Resolutions with attention: after every residual block on the way down, after the last
            one on the way up. The middle always has one. A level's resolution is its shorter side.
        dropout: Probability inside the residual blocks, in [0, 1).
        block: ``biggan`` resamples inside a residual block of its own; ``ddpm`` resamples between blocks.
        fir_kernel: Taps of the filter of every resampling; None for 2x2 averages and repeated pixels, or for
            convolutions of stride 2 without a filter.
        resample_conv: With ``ddpm`` blocks, a convolution where the resolution changes.
        input_pyramid: How the image is brought in at every level: not at all, through a chain of convolutions that is
            added to the features (``residual``), or resampled and added through a 1x1 convolution (``skip``).
        output_pyramid: Whether the output is a sum of images of every level (``skip``).
        rescale: Divide every residual sum by sqrt(2).
        embedding: Embedding of the noise label: ``sin_first`` or ``fourier``.
        noise_features: Features of that embedding, even; ``channels``, or twice that with ``fourier``, when None.
        num_classes: Number of classes, or None for an unconditional network.
        null_class: Take the label -1, no class, too: for a network that is trained without its class now and then.
        augment_dim: Numbers that say how an image was augmented (Karras et al. 2022, Appendix F.2); 0 for none.
        min_group_channels: Each group of a norm has at least as many channels, up to 32 groups.
        norm_eps: Epsilon of the group norms.
        learned_variance: Return ``2 C`` channels, the last ``C`` being the raw variance interpolation.
        outputs_per_channel: Outputs for each channel of the data.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.

    Source: Song et al. 2021, Appendix H; Karras et al. 2022, Appendix F.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        num_res_blocks: int = 4,
        attention_resolutions: Sequence[int] = (16,),
        dropout: float = 0.0,
        block: Block = "biggan",
        fir_kernel: Sequence[float] | None = (1, 3, 3, 1),
        resample_conv: bool = True,
        input_pyramid: InputPyramid = "residual",
        output_pyramid: OutputPyramid = "none",
        rescale: bool = True,
        embedding: NoiseEmbedding = "sin_first",
        noise_features: int | None = None,
        num_classes: int | None = None,
        null_class: bool = False,
        augment_dim: int = 0,
        min_group_channels: int = 4,
        norm_eps: float = 1e-6,
        learned_variance: bool = False,
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__()
        _check_choice("block", block, get_args(Block))
        _check_choice("input_pyramid", input_pyramid, get_args(InputPyramid))
        _check_choice("output_pyramid", output_pyramid, get_args(OutputPyramid))
        _check_positive(
            in_channels=in_channels,
            channels=channels,
            num_res_blocks=num_res_blocks,
            channel_mult=min(channel_mult, default=0),
            min_group_channels=min_group_channels,
            outputs_per_channel=outputs_per_channel,
        )
        resolutions = level_resolutions(image_size, len(channel_mult))
        check_attention_resolutions(attention_resolutions, resolutions)
        self._size = height_and_width(image_size)
        self.image_size = one_or_pair(*self._size)
        self.in_channels, self.num_res_blocks = in_channels, num_res_blocks
        self.block: Block = block
        self.num_classes = num_classes
        self.out_channels = in_channels * (outputs_per_channel + learned_variance)

        def norm(width: int) -> nn.Module:
            return group_norm(width, norm_eps, max_groups=max(1, min(32, width // min_group_channels)))

        embedding_dim = 4 * channels
        features = noise_features or (2 * channels if embedding == "fourier" else channels)
        res_block = partial(RescaledResBlock, embedding_dim=embedding_dim, norm=norm, dropout=dropout, rescale=rescale)
        last = len(channel_mult) - 1
        widths = [channels * mult for mult in channel_mult]
        attends = [resolution in attention_resolutions for resolution in resolutions]

        def attend(width: int) -> RescaledAttention:
            return RescaledAttention(AttentionBlock(width, norm=norm), rescale=rescale)

        def down_step(width: int) -> nn.Module:
            if block == "biggan":
                return res_block(width, width, resample=make_resampler("down", fir_kernel))
            return (
                make_conv_downsample(width, width, fir_kernel) if resample_conv else make_resampler("down", fir_kernel)
            )

        def up_step(width: int) -> nn.Module:
            if block == "biggan":
                return res_block(width, width, resample=make_resampler("up", fir_kernel))
            return ConvUpsample(width, fir_kernel or (1, 1)) if resample_conv else make_resampler("up", fir_kernel)

        def image_input(level: int) -> InputSkip | InputResidual | None:
            if input_pyramid == "none":
                return None
            if input_pyramid == "skip":
                return InputSkip(in_channels, widths[level], make_resampler("down", fir_kernel))
            before = in_channels if level == 0 else widths[level - 1]
            return InputResidual(make_conv_downsample(before, widths[level], fir_kernel), rescale=rescale)

        self.embed = NoiseLabelEmbedding(
            features,
            embedding_dim,
            kind=embedding,
            num_classes=num_classes,
            null_class=null_class,
            augment_dim=augment_dim,
        )
        self.conv_in = initialize(nn.Conv2d(in_channels, channels, 3, padding=1))

        self.down = nn.ModuleList()
        skip_widths, width = [channels], channels
        for i, out in enumerate(widths):
            blocks = [res_block(width if j == 0 else out, out) for j in range(num_res_blocks)]
            width = out
            step, image = (None, None) if i == last else (down_step(out), image_input(i))
            self.down.append(PyramidDownLevel(blocks, [attend(out) for _ in blocks if attends[i]], step, image))
            skip_widths += [out] * (num_res_blocks + (i < last))

        self.middle = PyramidMiddleLevel(res_block(width, width), attend(width), res_block(width, width))

        up: list[PyramidUpLevel] = []
        for i, out in reversed(list(enumerate(widths))):
            blocks = []
            for _ in range(num_res_blocks + 1):
                blocks.append(res_block(width + skip_widths.pop(), out))
                width = out
            image = None
            if output_pyramid == "skip" and i > 0:
                image = OutputSkip(norm(out), out, self.out_channels, make_resampler("up", fir_kernel))
            up.append(PyramidUpLevel(blocks, attend(out) if attends[i] else None, image, up_step(out) if i else None))
        self.up = nn.ModuleList(reversed(up))

        self.norm_out = norm(width)
        self.conv_out = initialize(nn.Conv2d(width, self.out_channels, 3, padding=1), zero=True)
        self.image_up = make_resampler("up", fir_kernel)

    @property
    def stages(self) -> list[PyramidLevel]:
        """The levels in the order in which they are applied: down, middle, up."""
        return [level for level in (*self.down, self.middle, *reversed(self.up)) if isinstance(level, PyramidLevel)]

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``PyramidLevel``."""
        return self.middle.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for level in self.stages:
            level.gradient_checkpointing = on

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_class``; None without classes.
            augment: How each image was augmented, [B, A], or None for not at all.

        Returns:
            The prediction, [B, C, H, W], or more channels by ``learned_variance`` and ``outputs_per_channel``. It has
            the dtype of ``x``, under autocast too.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        check_input(x, (self.in_channels, *self._size), self.conv_in.weight)
        embedding = self.embed(c_noise, cond, augment, x.shape[0])
        pyramid, skips = x, [self.conv_in(x)]
        for level in self.down:
            results, pyramid = level(skips[-1], embedding, pyramid)
            skips += results
        hidden, image = self.middle(skips[-1], embedding), None
        for level in reversed(self.up):
            hidden, image = level(hidden, embedding, [skips.pop() for _ in range(self.num_res_blocks + 1)], image)
        out = self.conv_out(F.silu(self.norm_out(hidden)))
        return (out if image is None else out + self.image_up(image)).to(x.dtype)


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _check_positive(**numbers: int) -> None:
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; raise it")
