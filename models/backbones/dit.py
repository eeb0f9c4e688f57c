"""The diffusion transformer: an image as a sequence of patches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .base import Backbone
from .blocks.checks import check_choice, check_input, check_positive
from .blocks.condition_input import ConditionInput
from .blocks.cross_attention import Attention, Text, read_text
from .blocks.dit_block import DiTBlock, LastLayer
from .blocks.embedding import ConditioningEmbedding, EmbeddingKind
from .blocks.initialization import initialize
from .blocks.levels import Level
from .blocks.patches import from_patches, rotations, sincos_positions
from .blocks.resolutions import ImageSize, height_and_width, one_or_pair
from .blocks.word_encoder import WordEncoder, read_words

Positions = Literal["sincos", "learned", "rotary"]
TextBy = Literal["cross_attention", "in_context"]


class DiT(Backbone):
    """The network of Peebles and Xie 2023: patches through transformer blocks that the embedding scales and shifts.

    A new network returns zeros, and each of its blocks is the identity. The defaults are DiT-S; at patches of 2 and
    ``image_size=32, in_channels=4, num_classes=1000, null_condition=True, learned_variance=True`` the published ones
    have these sizes, the table of positions counted:

    ====  ==========================================  ===========
    S/2   ``channels=384, depth=12, num_heads=6``      32,963,360
    B/2   ``channels=768, depth=12, num_heads=12``    130,512,416
    L/2   ``channels=1024, depth=24, num_heads=16``   458,102,816
    XL/2  ``channels=1152, depth=28, num_heads=16``   675,129,632
    ====  ==========================================  ===========

    Args:
        image_size: Height and width, one number or ``(H, W)``, that ``patch_size`` divides.
        in_channels: Channels of the data, ``C``.
        patch_size: Side of a patch, ``P``.
        channels: Features of a patch, divisible by ``num_heads``, and by 4.
        depth: Number of blocks.
        num_heads: Heads of every attention.
        mlp_ratio: Width of the layers between over ``channels``.
        positions: Where a patch is: added "sincos", that are fixed, or "learned"; or "rotary", queries and keys turned.
        qk_norm: Normalize queries and keys, which keeps long trainings stable.
        learned_variance: Return ``2 C`` channels, the last ``C`` being the raw variance interpolation.
        num_classes: Number of classes, or None for an unconditional network.
        null_condition: Take no condition too, label -1 and NaN: for a network that is trained without it now and then.
        cond_channels: Channels of an image that is a condition; 0 for none.
        cond_values: Values that are a condition, for each sample; 0 for none.
        cond_tokens: Features of the tokens of a text that is a condition; 0 for none.
        cond_pooled: Features of a vector of a text or an image that is a condition; 0 for none.
        text_by: "cross_attention" to the tokens in each block, or "in_context": tokens join the patches' sequence.
        cond_words: Words of a vocabulary that the network learns, in place of ``cond_tokens`` and ``cond_pooled``; 0
            for none. See ``WordEncoder``, of which the next three are options.
        max_words: Words of the longest text.
        word_features: Features of a word.
        word_layers: Layers over the words of a text.
        norm_eps: Epsilon of the norms.
        mlp_norm_eps: That of the norms before the two layers of a block, which is another in diffusers' class.
        embedding: Embedding of the noise label: ``sin_first``, ``cos_first`` (Peebles and Xie) or ``fourier``.
        embedding_dim: Features of the noise embedding.
        outputs_per_channel: Outputs for each channel of the data, above 1 where a pixel's answer is a distribution.

    Raises:
        ValueError: A setting is impossible; the message names it and what would do.

    Source: Peebles and Xie 2023, Section 3; Chen et al. 2023 (PixArt-alpha; cross-attention); Su et al. 2021 (rotary).
    """

    positions: Tensor | None
    rotation: Tensor | None

    def __init__(
        self,
        *,
        image_size: ImageSize,
        in_channels: int = 3,
        patch_size: int = 2,
        channels: int = 384,
        depth: int = 12,
        num_heads: int = 6,
        mlp_ratio: float = 4.0,
        positions: Positions = "sincos",
        qk_norm: bool = False,
        learned_variance: bool = False,
        num_classes: int | None = None,
        null_condition: bool = False,
        cond_channels: int = 0,
        cond_values: int = 0,
        cond_tokens: int = 0,
        cond_pooled: int = 0,
        text_by: TextBy = "cross_attention",
        cond_words: int = 0,
        max_words: int = 32,
        word_features: int = 128,
        word_layers: int = 2,
        norm_eps: float = 1e-6,
        mlp_norm_eps: float = 1e-6,
        embedding: EmbeddingKind = "cos_first",
        embedding_dim: int = 256,
        outputs_per_channel: int = 1,
    ) -> None:
        super().__init__()
        self._set_shape()
        self.num_classes = num_classes
        self.out_channels = in_channels * (outputs_per_channel + learned_variance)
        classes = {"num_classes": num_classes, "null_condition": null_condition, "learned_null": True}
        self.embed = ConditioningEmbedding(embedding_dim, channels, **classes, kind=embedding)
        self.patches = nn.Conv2d(in_channels, channels, patch_size, stride=patch_size)
        self._set_positions(positions)
        eps = {"norm_eps": norm_eps, "mlp_norm_eps": mlp_norm_eps}
        self.blocks = nn.ModuleList(
            DiTBlock(channels, num_heads=num_heads, mlp_ratio=mlp_ratio, qk_norm=qk_norm, **eps) for _ in range(depth)
        )
        self.last = LastLayer(channels, patch_size**2 * self.out_channels, norm_eps=norm_eps)
        self._initialize()
        # made last: what is told moves no other weight of a new network
        self.condition_input = ConditionInput(
            channels=cond_channels * patch_size**2,
            num_values=cond_values,
            pooled_features=word_features if cond_words else cond_pooled,
            hidden_channels=channels,
            embedding_dim=channels,
            null_condition=null_condition,
        )
        self.token_features = word_features if cond_words else cond_tokens
        self.tokens_in: nn.Linear | None = None
        self.word_encoder: WordEncoder | None = None
        if self.token_features:
            self._add_text(text_by)

    def _add_text(self, text_by: TextBy) -> None:
        """Make the way of tokens into the blocks, and the encoder of words that are learned."""
        options, channels = self.options, self.options["channels"]
        if text_by == "in_context":
            self.tokens_in = initialize(nn.Linear(self.token_features, channels))
        else:
            for block in self.stages:
                block.cross_attention = Attention(channels, self.token_features, num_heads=options["num_heads"])
        if options["cond_words"]:
            self.word_encoder = WordEncoder(
                num_words=options["cond_words"],
                features=self.token_features,
                max_words=options["max_words"],
                num_layers=options["word_layers"],
            )

    def _set_shape(self) -> None:
        """Check the options, and set what follows from them."""
        options = self.options
        names = ("in_channels", "patch_size", "channels", "depth", "num_heads", "outputs_per_channel")
        check_positive(**{name: options[name] for name in names})
        check_choice("positions", options["positions"], get_args(Positions))
        check_choice("text_by", options["text_by"], get_args(TextBy))
        self.size, side = height_and_width(options["image_size"]), options["patch_size"]
        if any(length % side for length in self.size):
            shown = "x".join(map(str, self.size))
            padded = "x".join(str(-(-length // side) * side) for length in self.size)
            raise ValueError(
                f"patch_size must divide images of {shown}, got {side}; take another or pad them to {padded}"
            )
        if options["channels"] % options["num_heads"]:
            raise ValueError(
                f"num_heads must divide the {options['channels']} channels, got {options['num_heads']}; change one"
            )
        self.image_size, self.in_channels = one_or_pair(*self.size), options["in_channels"]
        self.grid = (self.size[0] // side, self.size[1] // side)

    def _set_positions(self, kind: Positions) -> None:
        channels, head_channels = self.options["channels"], self.options["channels"] // self.options["num_heads"]
        places = sincos_positions(*self.grid, channels) if kind == "sincos" else None
        self.register_buffer(
            "rotation", rotations(*self.grid, head_channels) if kind == "rotary" else None, persistent=False
        )
        if kind == "learned":
            self.positions = nn.Parameter(0.02 * torch.randn(self.grid[0] * self.grid[1], channels))
        else:
            self.register_buffer("positions", places, persistent=False)

    def _initialize(self) -> None:
        """Initialize as the released code: patches as a linear layer, embeddings with a standard deviation of 0.02."""
        nn.init.xavier_uniform_(self.patches.weight.detach().flatten(1))
        nn.init.zeros_(self.patches.bias)  # pyright: ignore[reportArgumentType]
        tables = [self.embed.linear1.weight, self.embed.linear2.weight]
        if self.embed.class_table is not None:
            tables.append(self.embed.class_table.weight)
        for table in tables:
            nn.init.normal_(table, std=0.02)

    @property
    def stages(self) -> Sequence[DiTBlock]:
        """The blocks."""
        return [block for block in self.blocks if isinstance(block, DiTBlock)]

    @property
    def hidden_matrices(self) -> list[Tensor]:
        """The weights of attention and of the two layers in all blocks, [m, n] each: those that Muon is for."""
        blocks = [block for block in self.modules() if isinstance(block, Level)]
        named = [pair for block in blocks for pair in block.named_parameters()]
        return [weight for name, weight in named if weight.ndim == 2 and not name.startswith("modulate")]

    @property
    def gradient_checkpointing(self) -> bool:
        """True if blocks are computed anew in the backward pass instead of remembered; see ``Level``."""
        return self.stages[0].gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        for block in self.modules():
            if isinstance(block, Level):
                block.gradient_checkpointing = on

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
        check_input(x, (self.in_channels, *self.size), self.patches.weight)
        if self.word_encoder is not None:
            tokens, mask, pooled = read_words(self.word_encoder, words, tokens, pooled, len(x))
        elif words is not None:
            raise ValueError("words must be None: the network has no vocabulary; build it with cond_words=...")
        text = read_text(x, tokens, mask, features=self.token_features, null_condition=self.null_condition)
        told = self.condition_input.to_embedding(len(x), image_log_snr, values, pooled)
        embedding = self.embed(c_noise, cond, len(x), told)
        sequence, attended = self._join(self._place_patches(x, image), text)
        for block in self.blocks:
            sequence = block(sequence, embedding, attended, self.rotation, None if self.tokens_in else text)
        patches = self.last(sequence[:, : self.grid[0] * self.grid[1]], embedding)
        return from_patches(patches, self.size, self.options["patch_size"]).to(x.dtype)

    def _place_patches(self, x: Tensor, image: Tensor | None) -> Tensor:
        """The patches of noisy data and of an image that is a condition, with their positions, [B, N, channels]."""
        hidden = self.patches(x)
        if image is not None and image.shape[2:] == x.shape[2:]:  # another shape is refused below
            image = F.pixel_unshuffle(image, self.options["patch_size"])
        seen = self.condition_input.to_hidden(hidden, image)
        sequence = (hidden if seen is None else hidden + seen).flatten(2).transpose(1, 2)
        return sequence if self.positions is None else sequence + self.positions

    def _join(self, sequence: Tensor, text: Text | None) -> tuple[Tensor, Tensor | None]:
        """The sequence with the tokens of a text behind it if they join it, and where it may be attended to."""
        if self.tokens_in is None or text is None:
            return sequence, None
        joined = torch.cat((sequence, self.tokens_in(text.tokens).to(sequence.dtype)), 1)
        if text.mask is None or text.present is None:
            return joined, None
        # nothing of a sample without text is attended to
        words = text.mask & text.present[..., None]
        return joined, F.pad(words, (sequence.shape[1], 0), value=True)
