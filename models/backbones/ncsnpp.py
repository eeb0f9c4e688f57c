"""NCSN++ and DDPM++, the networks of Song et al. 2021, with which EDM's SongUNet is one family."""

from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor, nn
from torch.nn import functional as F

from .base import ImageBackbone
from .blocks.checks import check_choice
from .blocks.embedding import NoiseEmbedding, NoiseLabelEmbedding
from .blocks.fir import ConvUpsample, Direction, make_conv_downsample, make_resampler
from .blocks.initialization import initialize
from .blocks.layers import AttentionBlock, ResBlock
from .blocks.levels import DownLevel, Level
from .blocks.ncsnpp_levels import InputResidual, InputSkip, OutputSkip, PyramidUpLevel, RescaledAttention
from .blocks.normalization import group_norm
from .blocks.resolutions import ImageSize

Block = Literal["biggan", "ddpm"]
InputPyramid = Literal["none", "residual", "skip"]
OutputPyramid = Literal["none", "skip"]


class NCSNpp(ImageBackbone):
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
        null_condition: Take no condition too, label -1 and NaN: for a network that is trained without it now and then.
        cond_channels: Channels of an image that is a condition; 0 for none.
        cond_values: Values that are a condition, for each sample; 0 for none.
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
        null_condition: bool = False,
        cond_channels: int = 0,
        cond_values: int = 0,
        augment_dim: int = 0,
        min_group_channels: int = 4,
        norm_eps: float = 1e-6,
        learned_variance: bool = False,
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__()
        self._set_shape()
        check_choice("block", block, get_args(Block))
        check_choice("input_pyramid", input_pyramid, get_args(InputPyramid))
        check_choice("output_pyramid", output_pyramid, get_args(OutputPyramid))
        self.out_channels = in_channels * (outputs_per_channel + learned_variance)
        self.embed = NoiseLabelEmbedding(
            noise_features or (2 * channels if embedding == "fourier" else channels),
            4 * channels,
            kind=embedding,
            num_classes=num_classes,
            null_condition=null_condition,
            augment_dim=augment_dim,
        )
        self.conv_in = initialize(nn.Conv2d(in_channels, channels, 3, padding=1))
        attends = self._attends(attention_resolutions)
        self.down = self._build_down(channels, attends)
        self.middle = self._build_middle(self._attention)
        self.up = self._build_up(channels, attends)
        self.norm_out = self._norm(self.widths[0])
        self.conv_out = initialize(nn.Conv2d(self.widths[0], self.out_channels, 3, padding=1), zero=True)
        self.image_up = self._plain_resampler("up")
        self.condition_input = self._condition_input(channels)

    def _norm(self, width: int) -> nn.Module:
        most = max(1, min(32, width // self.options["min_group_channels"]))
        return group_norm(width, self.options["norm_eps"], max_groups=most)

    def _plain_resampler(self, direction: Direction) -> nn.Module:
        return make_resampler(direction, self.options["fir_kernel"])

    def _res_block(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        return ResBlock(
            in_channels,
            out_channels,
            4 * self.options["channels"],
            dropout=self.options["dropout"],
            norm=self._norm,
            resample=resample,
            skip_conv=resample is not None,
            rescale=self.options["rescale"],
        )

    def _attention(self, width: int) -> RescaledAttention:
        return RescaledAttention(AttentionBlock(width, norm=self._norm), rescale=self.options["rescale"])

    def _resample(self, direction: Direction, width: int) -> nn.Module:
        kernel = self.options["fir_kernel"]
        if self.options["block"] == "biggan":
            return self._res_block(width, width, self._plain_resampler(direction))
        if not self.options["resample_conv"]:
            return self._plain_resampler(direction)
        return make_conv_downsample(width, width, kernel) if direction == "down" else ConvUpsample(width, kernel)

    def _image_input(self, level: int) -> InputSkip | InputResidual | None:
        pyramid, width = self.options["input_pyramid"], self.widths[level]
        if pyramid == "none":
            return None
        if pyramid == "skip":
            return InputSkip(self.in_channels, width, self._plain_resampler("down"))
        before = self.widths[level - 1] if level else self.in_channels
        down = make_conv_downsample(before, width, self.options["fir_kernel"])
        return InputResidual(down, rescale=self.options["rescale"])

    def _level(self, side: Direction, i: int, blocks: list[ResBlock], *, attend: bool) -> Level:
        width, last = self.widths[i], len(self.widths) - 1
        if side == "down":
            resample = None if i == last else self._resample(side, width)
            image_input = None if i == last else self._image_input(i)
            return DownLevel(blocks, [self._attention(width) for _ in blocks if attend], resample, image_input)
        image_output = None
        if self.options["output_pyramid"] == "skip" and i:
            image_output = OutputSkip(self._norm(width), width, self.out_channels, self._plain_resampler("up"))
        attention = self._attention(width) if attend else None
        return PyramidUpLevel(blocks, attention, image_output, self._resample(side, width) if i else None)

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        cond: Tensor | None = None,
        augment: Tensor | None = None,
        *,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
        values: Tensor | None = None,
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_condition``; None without classes.
            image: Condition of ``cond_channels`` channels, [B, cond_channels, H, W]; NaN throughout is none.
            image_log_snr: log-SNR of the noise that the image has, [B]; None where it is clean.
            values: Condition of ``cond_values`` values, of order 1, [B, cond_values]; NaN is none.
            augment: How each image was augmented, [B, A], or None for not at all.

        Returns:
            The prediction, [B, C, H, W], or more channels by ``learned_variance`` and ``outputs_per_channel``. It has
            the dtype of ``x``, under autocast too.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        self._check_input(x)
        told = self.condition_input.to_embedding(len(x), image_log_snr, values)
        embedding = self.embed(c_noise, cond, augment, x.shape[0], told)
        hidden, seen = self.conv_in(x), self.condition_input.to_hidden(x, image)
        pyramid, skips = x, [hidden if seen is None else hidden + seen]
        for level in self.down:
            assert isinstance(level, DownLevel)
            skips += level(skips[-1], embedding)
            if level.image_input is not None:
                pyramid, skips[-1] = level.image_input(pyramid, skips[-1])
        hidden, image = self.middle(skips[-1], embedding), None
        for level in reversed(self.up):
            hidden, image = level(hidden, embedding, [skips.pop() for _ in range(self.num_res_blocks + 1)], image)
        out = self.conv_out(F.silu(self.norm_out(hidden)))
        return (out if image is None else out + self.image_up(image)).to(x.dtype)
