"""Embeddings of the noise level and of the class: [B] numbers in, [B, dim] features out."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checks import check_choice
from .classes import look_up_classes
from .initialization import initialize

EmbeddingKind = Literal["sin_first", "cos_first", "fourier"]
NoiseEmbedding = Literal["sin_first", "fourier"]


def sinusoidal_embedding(t: Tensor, dim: int, *, cos_first: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """Sines and cosines of ``t`` at geometrically spaced frequencies.

    ``[sin(t w_0), ..., sin(t w_{h-1}), cos(t w_0), ..., cos(t w_{h-1})]`` with ``h = dim / 2`` and
    ``w_i = 10000^(-i / (h - 1))``. With ``cos_first`` it is the convention of Improved DDPM and guided diffusion
    instead: the cosine half first and ``w_i = 10000^(-i / h)``.

    The phase is computed in float64: near t = 999 a float32 phase has lost three of its digits.

    Args:
        t: Noise labels, [B], of any real dtype, usually in [0, 1000).
        dim: Number of features, even, and at least 4 (2 with ``cos_first``).
        cos_first: The convention of Improved DDPM instead of Ho et al.'s.
        dtype: Type of the result.

    Returns:
        Features in [-1, 1], [B, dim].

    Raises:
        ValueError: ``dim`` is odd or too small, or ``t`` is not [B].

    Source: Ho et al. 2020, Appendix B (after Vaswani et al. 2017, Section 3.5); Nichol and Dhariwal 2021.
    """
    _check_even(dim, smallest=2 if cos_first else 4)
    _check_vector("t", t, t.numel())
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float64, device=t.device)
    frequencies = torch.exp(steps * (-math.log(10000.0) / (half if cos_first else half - 1)))
    return _sin_cos(t, frequencies, cos_first=cos_first, dtype=dtype)


class FourierEmbedding(nn.Module):
    """Sines and cosines of ``c`` at fixed random frequencies: ``[sin(2 pi W c), cos(2 pi W c)]``.

    ``W ~ N(0, scale^2)`` is drawn once and kept as the buffer ``frequencies``: it is saved with the weights and never
    trained. The phase, which reaches 10^3, is computed in float64.

    Args:
        dim: Number of features, even.
        scale: Standard deviation of the frequencies; 16 suits ``c = ln sigma``.
        generator: Source of the random frequencies; PyTorch's default one when None.

    Raises:
        ValueError: ``dim`` is odd or below 2.

    Source: Song et al. 2021, Appendix H.2 (after Tancik et al. 2020).
    """

    frequencies: Tensor

    def __init__(self, dim: int, scale: float = 16.0, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        _check_even(dim, smallest=2)
        self.register_buffer("frequencies", torch.randn(dim // 2, generator=generator) * scale)

    def forward(self, c: Tensor, *, dtype: torch.dtype | None = None) -> Tensor:
        """Embed noise labels.

        Args:
            c: Noise labels, [B], of any real dtype.
            dtype: Type of the result; that of ``frequencies`` when None.

        Returns:
            Features in [-1, 1], [B, dim].

        Raises:
            ValueError: ``c`` is not [B].
        """
        _check_vector("c", c, c.numel())
        return _sin_cos(c, self.frequencies.double() * (2.0 * math.pi), dtype=dtype or self.frequencies.dtype)


class LabelEmbedding(nn.Module):
    """Base of the embeddings of noise level and class.

    Args:
        embedding_dim: Features of the noise embedding, even.
        kind: ``sin_first`` (Ho et al.), ``cos_first`` (Improved DDPM) or ``fourier`` (Song et al., for ln sigma).
        num_classes: Number of classes, or None for an unconditional network.
        null_condition: Take the label -1, no class, too.

    Raises:
        ValueError: ``embedding_dim`` is odd, ``num_classes`` is below 1, or ``kind`` is unknown.
    """

    kinds: tuple[str, ...] = get_args(EmbeddingKind)

    def __init__(
        self, embedding_dim: int, *, kind: EmbeddingKind, num_classes: int | None, null_condition: bool
    ) -> None:
        super().__init__()
        check_choice("embedding", kind, self.kinds)
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}; pass None for no classes")
        _check_even(embedding_dim, smallest=4 if kind == "sin_first" else 2)
        self.kind: EmbeddingKind = kind
        self.embedding_dim = embedding_dim
        self.null_condition = null_condition
        self.fourier = FourierEmbedding(embedding_dim) if kind == "fourier" else None

    def _embed_noise(self, c_noise: Tensor, batch_size: int, dtype: torch.dtype) -> Tensor:
        _check_vector("c_noise", c_noise, batch_size)
        if self.fourier is not None:
            return self.fourier(c_noise, dtype=dtype)
        return sinusoidal_embedding(c_noise, self.embedding_dim, cos_first=self.kind == "cos_first", dtype=dtype)


class ConditioningEmbedding(LabelEmbedding):
    """The embedding of noise level and class, one activated vector for every block.

    ``SiLU(linear2(SiLU(linear1(embedding(c_noise)))) + class_table[cond])``. With ``null_condition`` the label -1 means
    "no class" and adds zero, so that the bias of ``linear2`` is what is learned of it, or a last row of the table with
    ``learned_null``; without it -1 is refused, since what the network answers there was never trained. The table starts
    as N(0, 1). The last SiLU is the one that opens each residual block's projection in Ho et al.'s network, computed
    once here instead of once a block.

    Args:
        embedding_dim: Features of the noise embedding, even.
        out_dim: Features of the result, ``E``.
        num_classes: Number of classes, or None for an unconditional network.
        null_condition: Take the label -1 too.
        learned_null: Have a row of the table for it, as Peebles and Xie 2023.
        kind: ``sin_first``, ``cos_first`` or ``fourier``; see ``LabelEmbedding``.

    Raises:
        ValueError: See ``LabelEmbedding``.

    Source: Ho et al. 2020, Appendix B; Dhariwal and Nichol 2021 (classes); Ho and Salimans 2022 (no class).
    """

    def __init__(
        self,
        embedding_dim: int,
        out_dim: int,
        *,
        num_classes: int | None = None,
        null_condition: bool = False,
        learned_null: bool = False,
        kind: EmbeddingKind = "sin_first",
    ) -> None:
        super().__init__(embedding_dim, kind=kind, num_classes=num_classes, null_condition=null_condition)
        self.learned_null = learned_null and null_condition
        self.linear1 = nn.Linear(embedding_dim, out_dim)
        self.linear2 = nn.Linear(out_dim, out_dim)
        self.class_table = None if num_classes is None else nn.Embedding(num_classes + self.learned_null, out_dim)
        for linear in (self.linear1, self.linear2):
            initialize(linear)

    def forward(self, c_noise: Tensor, cond: Tensor | None, batch_size: int, more: Tensor | None = None) -> Tensor:
        """Embed noise labels and classes.

        Args:
            c_noise: Noise labels, [B].
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_condition``; None without classes.
            batch_size: ``B``, that of the data these labels go with.
            more: Added before the last SiLU, [B, E]; None for nothing.

        Returns:
            The activated embedding, [B, E].

        Raises:
            ValueError: A shape or type is wrong, labels are missing, unexpected or (on the CPU) out of range.
        """
        features = self._embed_noise(c_noise, batch_size, self.linear1.weight.dtype)
        embedded = self.linear2(F.silu(self.linear1(features)))
        table = None if self.class_table is None else self.class_table.weight
        null = None
        if table is not None and self.learned_null:
            table, null = table[:-1], table[-1]
        classes = look_up_classes(table, cond, batch_size, null_condition=self.null_condition)
        if classes is not None and cond is not None and null is not None:
            classes = torch.where(cond[:, None] == -1, null, classes)
        embedded = embedded if classes is None else embedded + classes
        return F.silu(embedded if more is None else embedded + more)


class NoiseLabelEmbedding(LabelEmbedding):
    """``SiLU(linear2(SiLU(linear1(features + class_map(sqrt(n) onehot(cond)) + augment_map(augment)))))``.

    The class is added to the features of the noise before the two linear layers, as EDM does, not after them as
    ``ConditioningEmbedding`` does. ``sqrt(n)``, with ``n`` classes, makes up for the one-hot vector's small variance.
    With ``null_condition`` the label -1 is no class: zeros in place of the one-hot vector. No augmentation is zeros
    too.

    Args:
        embedding_dim: Features of the noise embedding, even.
        out_dim: Features of the result, ``E``.
        kind: ``sin_first`` or ``fourier``; see ``LabelEmbedding``.
        num_classes: Number of classes, ``n``, or None.
        null_condition: Take the label -1 too.
        augment_dim: Numbers that say how an image was augmented, ``A``; 0 for none.

    Raises:
        ValueError: ``augment_dim`` is negative, or see ``LabelEmbedding``.

    Source: Song et al. 2021, Appendix H.2; Karras et al. 2022, Appendix F (classes and augmentation).
    """

    kinds = get_args(NoiseEmbedding)

    def __init__(
        self,
        embedding_dim: int,
        out_dim: int,
        *,
        kind: NoiseEmbedding = "sin_first",
        num_classes: int | None = None,
        null_condition: bool = False,
        augment_dim: int = 0,
    ) -> None:
        super().__init__(embedding_dim, kind=kind, num_classes=num_classes, null_condition=null_condition)
        if augment_dim < 0:
            raise ValueError(f"augment_dim must be at least 0, got {augment_dim}; pass 0 for no augmentation")
        self.augment_dim = augment_dim
        self.class_map = None if num_classes is None else initialize(nn.Linear(num_classes, embedding_dim))
        self.augment_map = initialize(nn.Linear(augment_dim, embedding_dim, bias=False)) if augment_dim else None
        self.linear1 = initialize(nn.Linear(embedding_dim, out_dim))
        self.linear2 = initialize(nn.Linear(out_dim, out_dim))

    def forward(
        self,
        c_noise: Tensor,
        cond: Tensor | None,
        augment: Tensor | None,
        batch_size: int,
        more: Tensor | None = None,
    ) -> Tensor:
        """Embed noise labels, classes and augmentations.

        Args:
            c_noise: Noise labels, [B].
            cond: Class labels, int64 [B] in 0 .. n - 1, -1 too with ``null_condition``; None without classes.
            augment: Augmentation labels, [B, A], or None for none.
            batch_size: ``B``, that of the data these labels go with.
            more: Added before the last SiLU, [B, E]; None for nothing.

        Returns:
            The activated embedding, [B, E].

        Raises:
            ValueError: A shape or type is wrong, labels are missing, unexpected or (on the CPU) out of range.
        """
        features = self._embed_noise(c_noise, batch_size, self.linear1.weight.dtype)
        table = None if self.class_map is None else self.class_map.weight.t()
        classes = look_up_classes(table, cond, batch_size, null_condition=self.null_condition)
        if self.class_map is not None and classes is not None:
            features = features + (classes * math.sqrt(self.class_map.in_features) + self.class_map.bias)
        if self.augment_map is None and augment is not None:
            raise ValueError("augment must be None: the network has no such labels; build it with augment_dim=...")
        if self.augment_map is not None:
            expected = (batch_size, self.augment_dim)
            if augment is None:  # zeros rather than nothing, so that every parameter has a gradient
                augment = features.new_zeros(expected)
            if augment.shape != expected:
                raise ValueError(
                    f"augment must have shape {list(expected)}, got {list(augment.shape)}; one label a sample"
                )
            features = features + self.augment_map(augment.to(features.dtype))
        embedded = self.linear2(F.silu(self.linear1(features)))
        return F.silu(embedded if more is None else embedded + more)


def _sin_cos(t: Tensor, frequencies: Tensor, *, cos_first: bool = False, dtype: torch.dtype) -> Tensor:
    phase = t.to(torch.float64).unsqueeze(-1) * frequencies
    halves = (phase.cos(), phase.sin()) if cos_first else (phase.sin(), phase.cos())
    return torch.cat(halves, dim=-1).to(dtype)


def _check_even(dim: int, *, smallest: int) -> None:
    if dim % 2 or dim < smallest:
        raise ValueError(f"embedding dim must be even and at least {smallest}, got {dim}; use {max(dim + 1, smallest)}")


def _check_vector(name: str, value: Tensor, size: int) -> None:
    if value.shape != (size,):
        fix = f"{name}.flatten()" if value.numel() == size else f"one {name} for each sample"
        raise ValueError(f"{name} must have shape [{size}], got {list(value.shape)}; pass {fix}")
