"""The U-Net of denoising diffusion: Ho et al.'s network, a preset of ADM."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from .adm import ADM
from .blocks.embedding import EmbeddingKind
from .blocks.resolutions import ImageSize


class UNet(ADM):
    """The network of Ho et al. 2020: the defaults at ``image_size=32`` are theirs for CIFAR-10, 35,746,307 parameters.

    It is an ``ADM`` that resamples by convolutions and whose first convolution has ``channels`` channels.

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

    # options of ``ADM`` that are not chosen here
    fixed: ClassVar[Mapping[str, Any]] = {
        "up_attention_resolutions": None,
        "floor_heads": False,
        "resampling": "convolution",
        "middle_attention": True,
        "middle_attention_norm": True,
        "norm_group_channels": 1,
        "embedding_dim": None,
        "transformer_depth": 0,
    }

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
        norm_eps: float = 1e-6,
        norm_groups: int = 32,
        embedding: EmbeddingKind = "sin_first",
        symmetric_downsample: bool = False,
        input_frequencies: Sequence[int] = (),
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__(**self.options, **self.fixed, first_channels=channels)
