"""The ADM network of guided diffusion, and its relatives in Improved DDPM, EDM and diffusers."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import ImageBackbone
from .blocks.checks import check_choice
from .blocks.cross_attention import CrossAttentionBlock, Text, read_text
from .blocks.embedding import ConditioningEmbedding, EmbeddingKind
from .blocks.fir import Direction, make_resampler
from .blocks.initialization import initialize
from .blocks.input_features import InputFourierFeatures
from .blocks.layers import AttentionBlock, NormFactory, ResBlock
from .blocks.levels import BlocksLevel, DownLevel, Level, UpLevel
from .blocks.normalization import group_norm
from .blocks.resampling import Downsample, Upsample
from .blocks.resolutions import ImageSize
from .blocks.transformer import TransformerBlock
from .blocks.word_encoder import WordEncoder, read_words

Resampling = Literal["residual", "convolution"]


class Encoded(NamedTuple):
    """The results of an ``ADM``'s way down.

    Attributes:
        skips: That of the first convolution, of each residual block and of each downsampling, which the way up takes.
        middle: That of the middle.
        embedding: The embedding of noise level, class and the like.
        text: Tokens and their mask; None without.
    """

    skips: list[Tensor]
    middle: Tensor
    embedding: Tensor
    text: Text | None


class ADMBackbone(ImageBackbone):
    """Blocks and levels of ``ADM`` and of its classifier.

    Attributes:
        fixed: Options of ``ADM`` that the class does not leave to choose.
    """

    fixed: ClassVar[Mapping[str, Any]] = {}

    @property
    def token_features(self) -> int:
        """Features of a token of text, given or learned; 0 without text."""
        options = self.options
        return options["word_features"] if options.get("cond_words") else options.get("cond_tokens", 0)

    @property
    def settings(self) -> dict[str, Any]:
        """Options of ``ADM``, both those given and those that are fixed."""
        return {**self.fixed, **self.options}

    def _set_shape(self) -> None:
        super()._set_shape()
        check_choice("resampling", self.settings["resampling"], get_args(Resampling))

    def _norm(self, channels: int, eps: float | None = None) -> nn.GroupNorm:
        most, least = self.settings["norm_groups"], self.settings["norm_group_channels"]
        most = most if least == 1 else max(1, min(most, channels // least))
        return group_norm(channels, self.settings["norm_eps"] if eps is None else eps, max_groups=most)

    def _res_block(self, in_channels: int, out_channels: int, resample: nn.Module | None = None) -> ResBlock:
        return ResBlock(
            in_channels,
            out_channels,
            4 * self.settings["channels"],
            dropout=self.settings["dropout"],
            scale_shift=self.settings["scale_shift_norm"],
            norm=self._norm,
            resample=resample,
        )

    def _attention(self, channels: int, *, norm: NormFactory | None = None) -> AttentionBlock | None:
        """An attention block, or None where so many channels do not make one head."""
        num_heads, head_channels = self.settings["num_heads"], self.settings["head_channels"]
        if self.settings["floor_heads"] and head_channels is not None:
            num_heads, head_channels = channels // head_channels, None
            if num_heads == 0:
                return None
        return AttentionBlock(channels, num_heads=num_heads, head_channels=head_channels, norm=norm or self._norm)

    def _cross_attention(self, channels: int) -> CrossAttentionBlock | TransformerBlock:
        num_heads, head_channels = self.settings["num_heads"], self.settings["head_channels"]
        if self.settings["floor_heads"] and head_channels is not None:
            num_heads, head_channels = max(1, channels // head_channels), None
        features, depth = self.token_features, self.settings["transformer_depth"]
        heads = {"num_heads": num_heads, "head_channels": head_channels}
        if depth:
            # its norm has this epsilon in latent diffusion, whatever the others have
            norm = partial(self._norm, eps=1e-6)
            return TransformerBlock(channels, features, depth=depth, **heads, norm=norm)
        return CrossAttentionBlock(channels, features, **heads, norm=self._norm)

    def _resample(self, side: Direction, channels: int) -> nn.Module:
        if self.settings["resampling"] == "residual":
            return self._res_block(channels, channels, make_resampler(side, None))
        if side == "up":
            return Upsample(channels)
        return Downsample(channels, symmetric=self.settings["symmetric_downsample"])

    def _level(self, side: Direction, i: int, blocks: list[ResBlock], *, attend: bool) -> Level:
        width, last = self.widths[i], len(self.widths) - 1 if side == "down" else 0
        resample = None if i == last else self._resample(side, width)
        attention = [self._attention(width) for _ in blocks if attend]
        kind = DownLevel if side == "down" else UpLevel
        return kind(blocks, [block for block in attention if block is not None], resample)


class ADM(ADMBackbone):
    """The network of Dhariwal and Nichol 2021, with what its relatives do otherwise as options.

    Level ``i`` works at resolution ``image_size / 2^i`` with ``channels * channel_mult[i]`` channels; ``down[i]`` and
    ``up[i]`` are its two halves. A new network returns zeros, since its last layer starts at zero. Set
    ``gradient_checkpointing`` to trade time for memory. ``UNet`` is this network with Ho et al.'s defaults.

    ======================================  ============================================================================
    guided-diffusion, ImageNet 256          ``channels=256, channel_mult=(1, 1, 2, 2, 4, 4), head_channels=64,
                                            attention_resolutions=(32, 16, 8), learned_variance=True, num_classes=1000``
    improved-diffusion, ImageNet 64         ``channels=128, channel_mult=(1, 2, 3, 4), num_res_blocks=3, num_heads=4,
                                            attention_resolutions=(16, 8), resampling="convolution"``
    EDM's DhariwalUNet, ImageNet 64         ``channels=192, channel_mult=(1, 2, 3, 4), num_res_blocks=3,
                                            head_channels=64, floor_heads=True, norm_group_channels=4``
    Stable Diffusion 1.5, latents           ``in_channels=4, channels=320, channel_mult=(1, 2, 4, 4), num_heads=8,
                                            attention_resolutions=(), middle_attention=False, cond_tokens=768,
                                            cross_attention_resolutions=(64, 32, 16), transformer_depth=1,
                                            scale_shift_norm=False, resampling="convolution"``
    ======================================  ============================================================================

    Args:
        image_size: Height and width, one number or ``(H, W)``, divisible by ``2^(levels - 1)``.
        in_channels: Channels of the data, ``C``.
        channels: Features of the noise embedding, and the width that ``channel_mult`` multiplies; even.
        channel_mult: Width of each level over ``channels``, fractions allowed; one entry a level.
        num_res_blocks: Residual blocks a level on the way down; one more on the way up.
        attention_resolutions: Resolutions with attention after every residual block. A level's resolution is its
            shorter side.
        up_attention_resolutions: The same on the way up; those of the way down when None.
        num_heads: Heads of every attention block; ignored when ``head_channels`` is given.
        head_channels: Channels of one head.
        floor_heads: Take ``channels // head_channels`` heads where the division has a remainder, and no attention at
            all at a level that has fewer channels than one head, as EDM.
        dropout: Probability inside the residual blocks, in [0, 1).
        scale_shift_norm: Let the embedding scale and shift the second norm instead of adding before it.
        resampling: "residual": residual blocks that average or repeat pixels; "convolution": as Ho et al.
        symmetric_downsample: Pad every side before strided convolutions, as OpenAI, instead of right and below.
        middle_attention: Have attention in the middle.
        middle_attention_norm: Normalize before it.
        learned_variance: Return ``2 C`` channels, the last ``C`` being the raw variance interpolation.
        num_classes: Number of classes, or None for an unconditional network.
        null_condition: Take no condition too, label -1 and NaN: for a network that is trained without it now and then.
        cond_channels: Channels of an image that is a condition; 0 for none.
        cond_values: Values that are a condition, for each sample; 0 for none.
        cond_tokens: Features of the tokens of a text that is a condition; 0 for none.
        cond_pooled: Features of a vector of a text or an image that is a condition; 0 for none.
        cross_attention_resolutions: Resolutions with attention to tokens after every residual block, down and up; the
            middle always has it. Those of self-attention when None; of no effect without tokens.
        cond_words: Words of a vocabulary that the network learns, in place of ``cond_tokens`` and ``cond_pooled``; 0
            for none. See ``WordEncoder``, of which the next three are options.
        max_words: Words of the longest text.
        word_features: Features of a word.
        word_layers: Layers over the words of a text.
        transformer_depth: Layers of self-attention, cross-attention and feed-forward in place of cross-attention alone,
            as latent diffusion; 0 for none. See ``TransformerBlock``.
        norm_eps: Epsilon of the group norms.
        norm_groups: Groups of the norms.
        norm_group_channels: Channels that a group has at least; there are fewer groups where needed, as EDM.
        embedding: Embedding of the noise label: ``sin_first``, ``cos_first`` (OpenAI, EDM) or ``fourier``.
        embedding_dim: Features of the noise embedding; ``channels`` when None.
        first_channels: Channels of the first convolution's result; those of level 0 when None.
        input_frequencies: Exponents ``n`` of Fourier features ``sin(2^n pi x), cos(2^n pi x)`` of the input, such as
            (7, 8) (Kingma et al. 2021); see ``InputFourierFeatures``.
        outputs_per_channel: Outputs for each channel of the data.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.

    Source: Dhariwal and Nichol 2021, Section 3; Nichol and Dhariwal 2021; Karras et al. 2022, Appendix F.
    """

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        channels: int = 128,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (32, 16, 8),
        up_attention_resolutions: Sequence[int] | None = None,
        num_heads: int = 1,
        head_channels: int | None = None,
        floor_heads: bool = False,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resampling: Resampling = "residual",
        symmetric_downsample: bool = True,
        middle_attention: bool = True,
        middle_attention_norm: bool = True,
        learned_variance: bool = False,
        num_classes: int | None = None,
        null_condition: bool = False,
        cond_channels: int = 0,
        cond_values: int = 0,
        cond_tokens: int = 0,
        cond_pooled: int = 0,
        cross_attention_resolutions: Sequence[int] | None = None,
        cond_words: int = 0,
        max_words: int = 32,
        word_features: int = 128,
        word_layers: int = 2,
        transformer_depth: int = 0,
        norm_eps: float = 1e-5,
        norm_groups: int = 32,
        norm_group_channels: int = 1,
        embedding: EmbeddingKind = "cos_first",
        embedding_dim: int | None = None,
        first_channels: int | None = None,
        input_frequencies: Sequence[int] = (),
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__()
        self._set_shape()
        down_attends = self._attends(attention_resolutions)
        up_attends = down_attends if up_attention_resolutions is None else self._attends(up_attention_resolutions)
        self.out_channels = in_channels * (outputs_per_channel + learned_variance)
        first = first_channels or self.widths[0]
        self.embed = self._build_embedding()
        self.input_features = InputFourierFeatures(input_frequencies)
        self.conv_in = initialize(nn.Conv2d(self.input_features.out_channels(in_channels), first, 3, padding=1))
        self.down = self._build_down(first, down_attends)
        norm = None if middle_attention_norm else lambda _: nn.Identity()
        self.middle = self._build_middle(lambda width: self._attention(width, norm=norm) if middle_attention else None)
        self.up = self._build_up(first, up_attends)
        self.norm_out = self._norm(self.widths[0])
        self.conv_out = initialize(nn.Conv2d(self.widths[0], self.out_channels, 3, padding=1), zero=True)
        self.condition_input = self._condition_input(first)
        if cross_attention_resolutions is not None:
            down_attends = up_attends = self._attends(cross_attention_resolutions, "cross_attention_resolutions")
        if self.token_features:
            self._add_cross_attention(down_attends, up_attends)
        self.word_encoder = self._build_word_encoder() if cond_words else None

    def _build_embedding(self) -> ConditioningEmbedding:
        """The embedding of noise level and class."""
        options = self.options
        return ConditioningEmbedding(
            options["embedding_dim"] or options["channels"],
            4 * options["channels"],
            num_classes=options["num_classes"],
            null_condition=options["null_condition"],
            kind=options["embedding"],
        )

    def _build_word_encoder(self) -> WordEncoder:
        """The encoder of words that the network learns; made last, it moves no other weight."""
        options = self.options
        return WordEncoder(
            num_words=options["cond_words"],
            features=options["word_features"],
            max_words=options["max_words"],
            num_layers=options["word_layers"],
        )

    def _add_cross_attention(self, down_attends: Sequence[bool], up_attends: Sequence[bool]) -> None:
        """Attention to tokens in levels that are there: made last, it moves no other weight."""
        for levels, attends in ((self.down, down_attends), (self.up, up_attends)):
            for level, width, attend in zip(levels, self.widths, attends, strict=True):
                if attend and isinstance(level, BlocksLevel):
                    level.cross_attention.extend(self._cross_attention(width) for _ in level.blocks)
        self.middle.cross_attention = self._cross_attention(self.widths[-1])

    def forward(
        self,
        x: Tensor,
        c_noise: Tensor,
        cond: Tensor | None = None,
        *,
        image: Tensor | None = None,
        image_log_snr: Tensor | None = None,
        values: Tensor | None = None,
        words: Tensor | None = None,
        tokens: Tensor | None = None,
        mask: Tensor | None = None,
        pooled: Tensor | None = None,
    ) -> Tensor:
        """Apply the network.

        Args:
            x: Scaled noisy data, [B, C, H, W].
            c_noise: Noise labels, [B], in any real dtype: the embedding is computed in float64.
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_condition``; None without classes.
            image: Condition of ``cond_channels`` channels, [B, cond_channels, H, W]; NaN throughout is none.
            image_log_snr: log-SNR of the noise that the image has, [B]; None where it is clean.
            values: Condition of ``cond_values`` values, of order 1, [B, cond_values]; NaN is none.
            words: Numbers of words of a network with ``cond_words``, int64 [B, max_words]; a row of 0 is no text.
            tokens: Embedded text, of order 1, [B, L, cond_tokens].
            mask: True where a token is one, bool [B, L]; all False is no text. None where all tokens are.
            pooled: Vector of a text or an image, of order 1, [B, cond_pooled]; NaN throughout is none.

        Returns:
            The prediction, [B, C, H, W], or [B, 2 C, H, W] with ``learned_variance``: the prediction, then the raw
            variance interpolation. It has the dtype of ``x``, under autocast too.

        Raises:
            ValueError: A shape, dtype or label is not what the network was built for.
        """
        told = {"image": image, "image_log_snr": image_log_snr, "values": values}
        text = {"words": words, "tokens": tokens, "mask": mask, "pooled": pooled}
        return self.decode(self.encode(x, c_noise, cond, **told, **text), x.dtype)

    def encode(
        self,
        x: Tensor,
        c_noise: Tensor,
        cond: Tensor | None = None,
        *,
        hint: Tensor | None = None,
        **told: Tensor | None,
    ) -> Encoded:
        """Go the way down, and through the middle.

        Args:
            x: See ``forward``.
            c_noise: See ``forward``.
            cond: See ``forward``.
            hint: What is added to the first convolution's result, [B, first_channels, H, W]; None is nothing.
            **told: All else that ``forward`` takes.
        """
        self._check_input(x)
        words, tokens, mask, pooled = (told.get(name) for name in ("words", "tokens", "mask", "pooled"))
        if self.word_encoder is not None:
            tokens, mask, pooled = read_words(self.word_encoder, words, tokens, pooled, len(x))
        elif words is not None:
            raise ValueError("words must be None: the network has no vocabulary; build it with cond_words=...")
        text = read_text(x, tokens, mask, features=self.token_features, null_condition=self.null_condition)
        of_embedding = self.condition_input.to_embedding(len(x), told.get("image_log_snr"), told.get("values"), pooled)
        embedding = self.embed(c_noise, cond, x.shape[0], of_embedding)
        hidden = self.conv_in(self.input_features(x).to(x.dtype))
        seen = self.condition_input.to_hidden(x, told.get("image"))
        for one in (seen, hint):
            hidden = hidden if one is None else hidden + one
        skips = [hidden]
        for level in self.down:
            skips += level(skips[-1], embedding, text)
        return Encoded(skips, self.middle(skips[-1], embedding, text), embedding, text)

    def decode(self, encoded: Encoded, dtype: torch.dtype) -> Tensor:
        """Go the way up, [B, out_channels, H, W] in a dtype; see ``forward``."""
        skips, hidden = list(encoded.skips), encoded.middle
        for level in reversed(self.up):
            taken = [skips.pop() for _ in range(self.num_res_blocks + 1)]
            hidden = level(hidden, encoded.embedding, taken, encoded.text)
        return self.conv_out(F.silu(self.norm_out(hidden))).to(dtype)
