"""A small encoder of words that is trained with the network that reads it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn


class EncodedText(NamedTuple):
    """A batch of texts as networks read them.

    Attributes:
        tokens: A vector of each token, [B, L, F].
        mask: True where a token is one, bool [B, L].
        pooled: One vector of each text, [B, F]; NaN throughout where there is no text.
    """

    tokens: Float[Tensor, "batch length features"]
    mask: Bool[Tensor, "batch length"]
    pooled: Float[Tensor, "batch features"]


class WordEncoder(nn.Module):
    """Words by number, with their places and neighbours, through a transformer: one token a word, and the mean of all.

    A convolution adds two words to either side of each, so that "three" begins as a small red one: a transformer finds
    who stands beside whom late, and a network that reads it learns what is said of which object a few times slower.
    Words attend to the words of their own text alone, so that the rest of a row changes nothing. There is no dropout.

    Args:
        num_words: Number of known words; they count from 1, and 0 is none.
        features: F, divisible by ``num_heads``.
        max_words: L, words of the longest text.
        num_layers: Layers of the transformer; 0 for the words and their places alone.
        num_heads: Heads of its attention.

    Raises:
        ValueError: A number is below 1, or the heads do not divide the features.

    Source: Vaswani et al. 2017, with the norms before each part (Xiong et al. 2020).

    Example:
        >>> encoder = WordEncoder(num_words=31, features=128, max_words=12)
        >>> tokens, mask, pooled = encoder(torch.tensor([[3, 7, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0]]))
    """

    def __init__(
        self, *, num_words: int, features: int, max_words: int, num_layers: int = 2, num_heads: int = 4
    ) -> None:
        super().__init__()
        sizes = {"num_words": num_words, "features": features, "max_words": max_words, "num_heads": num_heads}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; raise it")
        if features % num_heads:
            raise ValueError(f"num_heads must divide the {features} features, got {num_heads}; pass 1, or another F")
        self.num_words, self.max_words = num_words, max_words
        self.embed = nn.Embedding(num_words + 1, features, padding_idx=0)
        self.places = nn.Parameter(torch.randn(max_words, features))
        self.neighbours = nn.Conv1d(features, features, 5, padding=2)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                features, num_heads, 4 * features, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(features)

    def forward(self, words: Int64[Tensor, "batch length"]) -> EncodedText:
        """Encode texts.

        Args:
            words: Numbers of words, int64 [B, max_words], 0 after the last; a row of zeros is no text.

        Raises:
            ValueError: If the shape or type is wrong, or on the CPU a number is of no word.
        """
        if words.ndim != 2 or words.shape[1] != self.max_words or words.dtype != torch.int64:
            got = f"{words.dtype} {list(words.shape)}"
            raise ValueError(f"words must be int64 [B, {self.max_words}], got {got}; pass Condition(words=...) so")
        mask = words != 0
        # what has no word attends to all of its row, since a softmax over nothing is NaN
        ignored = ~mask & mask.any(1, keepdim=True)
        try:
            known = self.embed(words)
        except IndexError:
            low, high = int(words.min()), int(words.max())
            raise ValueError(
                f"words must be numbers 0 .. {self.num_words}, got {low} .. {high}; use the vocabulary that the "
                "network was trained with"
            ) from None
        beside = self.neighbours(known.transpose(1, 2)).transpose(1, 2)
        hidden = known + beside + self.places
        for layer in self.layers:
            hidden = layer(hidden, src_key_padding_mask=ignored)
        tokens = self.norm(hidden) * mask.unsqueeze(-1)
        count = mask.sum(1, keepdim=True)
        pooled = tokens.sum(1) / count.clamp_min(1)
        return EncodedText(tokens, mask, pooled.masked_fill(count == 0, float("nan")))


def read_words(
    encoder: WordEncoder, words: Tensor | None, tokens: Tensor | None, pooled: Tensor | None, batch_size: int
) -> EncodedText:
    """Encode a batch's texts for a network that reads words, and is given nothing that is encoded already.

    Raises:
        ValueError: If there are no words, or tokens or a pooled vector beside them; see ``WordEncoder`` too.
    """
    if tokens is not None or pooled is not None:
        raise ValueError("tokens and pooled must be None: the network reads words; pass Condition(words=...)")
    if words is None or len(words) != batch_size:
        expected, got = [batch_size, encoder.max_words], None if words is None else list(words.shape)
        raise ValueError(f"words must be int64 {expected}, got {got}; pass Condition(words=...), 0 for no text")
    return encoder(words)
