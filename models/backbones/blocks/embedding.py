"""Embeddings of the noise level and of the class: [B] numbers in, [B, dim] features out."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .classes import check_classes, look_up_classes

EmbeddingKind = Literal["sin_first", "cos_first", "fourier"]


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
    _check_vector(t, "t")
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
        _check_vector(c, "c")
        return _sin_cos(c, self.frequencies.double() * (2.0 * math.pi), dtype=dtype or self.frequencies.dtype)


class ConditioningEmbedding(nn.Module):
    """The embedding of noise level and class, one activated vector for every block.

    ``SiLU(linear2(SiLU(linear1(embedding(c_noise)))) + class_table[cond])``. With ``null_class`` the label -1 means "no
    class" and adds zero, which is what classifier-free guidance trains and samples with; without it -1 is refused,
    since what the network answers there was never trained. The rows of the table start as N(0, 1). The last SiLU is the
    one that opens each residual block's projection in Ho et al.'s network, computed once here instead of once a block.

    Args:
        embedding_dim: Features of the noise embedding, even.
        out_dim: Features of the result, ``E``.
        num_classes: Number of classes, or None for an unconditional network.
        null_class: Take the label -1 too.
        kind: ``sin_first`` (Ho et al.), ``cos_first`` (Improved DDPM) or ``fourier`` (Song et al., for ln sigma).

    Raises:
        ValueError: ``embedding_dim`` is odd, ``num_classes`` is below 1, or ``kind`` is unknown.

    Source: Ho et al. 2020, Appendix B; Dhariwal and Nichol 2021 (classes); Ho and Salimans 2022 (no class).
    """

    def __init__(
        self,
        embedding_dim: int,
        out_dim: int,
        *,
        num_classes: int | None = None,
        null_class: bool = False,
        kind: EmbeddingKind = "sin_first",
    ) -> None:
        super().__init__()
        if kind not in get_args(EmbeddingKind):
            raise ValueError(f"embedding must be one of {', '.join(get_args(EmbeddingKind))}, got {kind!r}")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be at least 1, got {num_classes}; pass None for no classes")
        _check_even(embedding_dim, smallest=4 if kind == "sin_first" else 2)
        self.kind = kind
        self.embedding_dim = embedding_dim
        self.num_classes, self.null_class = num_classes, null_class
        self.fourier = FourierEmbedding(embedding_dim) if kind == "fourier" else None
        self.linear1 = nn.Linear(embedding_dim, out_dim)
        self.linear2 = nn.Linear(out_dim, out_dim)
        self.class_table = None if num_classes is None else nn.Embedding(num_classes, out_dim)
        for linear in (self.linear1, self.linear2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, c_noise: Tensor, cond: Tensor | None, batch_size: int) -> Tensor:
        """Embed noise labels and classes.

        Args:
            c_noise: Noise labels, [B].
            cond: Class labels, int64 [B] in 0 .. num_classes - 1, -1 too with ``null_class``; None without classes.
            batch_size: ``B``, that of the data these labels go with.

        Returns:
            The activated embedding, [B, E].

        Raises:
            ValueError: A shape or type is wrong, labels are missing, unexpected or (on the CPU) out of range.
        """
        if c_noise.shape != (batch_size,):
            raise ValueError(_vector_message("c_noise", c_noise, batch_size))
        dtype = self.linear1.weight.dtype
        if self.fourier is not None:
            features = self.fourier(c_noise, dtype=dtype)
        else:
            features = sinusoidal_embedding(
                c_noise, self.embedding_dim, cos_first=self.kind == "cos_first", dtype=dtype
            )
        embedded = self.linear2(F.silu(self.linear1(features)))
        classes = self._embed_classes(cond, batch_size)
        return F.silu(embedded if classes is None else embedded + classes)

    def _embed_classes(self, cond: Tensor | None, batch_size: int) -> Tensor | None:
        check_classes(cond, batch_size, num_classes=self.num_classes, null_class=self.null_class)
        if self.class_table is None or cond is None:
            return None
        return look_up_classes(self.class_table.weight, cond, null_class=self.null_class)


def _sin_cos(t: Tensor, frequencies: Tensor, *, cos_first: bool = False, dtype: torch.dtype) -> Tensor:
    phase = t.to(torch.float64).unsqueeze(-1) * frequencies
    halves = (phase.cos(), phase.sin()) if cos_first else (phase.sin(), phase.cos())
    return torch.cat(halves, dim=-1).to(dtype)


def _check_even(dim: int, *, smallest: int) -> None:
    if dim % 2 or dim < smallest:
        raise ValueError(f"embedding dim must be even and at least {smallest}, got {dim}; use {max(dim + 1, smallest)}")


def _check_vector(t: Tensor, name: str) -> None:
    if t.ndim != 1:
        raise ValueError(_vector_message(name, t, t.numel()))


def _vector_message(name: str, value: Tensor, size: int) -> str:
    fix = f"{name}.flatten()" if value.numel() == size else f"one {name} for each sample"
    return f"{name} must have shape [{size}], got {list(value.shape)}; pass {fix}"
