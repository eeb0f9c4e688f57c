"""A captioner: the law of captions given their image, learned word by word."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from data import NO_WORD, DataError, Vocabulary

_AT_ONCE = 500  # images captioned at once
_MOST_PLACES = 8  # of a side of the grid of features that words attend to
_SHARPER = 2.5  # of queries and keys at the start


class Captioner(nn.Module):
    """The law of captions given their image, p(w_1 .. w_n | x).

    A convolutional encoder makes a grid of features of an image, at most 8 of a side, to which their coordinates are
    added. A causal transformer attends to them and to the words so far, and says of each word which it is, or that the
    caption ends:

        log p(w_1 .. w_n | x) = sum_{i <= n} log p(w_i | w_1 .. w_{i-1}, x) + log p(end | w_1 .. w_n, x).

    A caption has 1 to ``max_words`` words: it cannot end before the first, and ends by itself after the last of them,
    where the second term is 0. So the probabilities of all captions sum to 1.

    It may learn a second law beside it, of captions that may be wrong. The two differ in the token that they begin
    with alone: whether a caption can be of another image is known from the start, and not guessed from the words so
    far, one of which may be a mistake of its own.

    Args:
        image_shape: (C, H, W) of the images.
        vocabulary: The words that captions are made of.
        max_words: Words of the longest caption.
        features: Features of a word, and of a place in the image, divisible by 8.
        num_layers: Layers of the transformer.
        dropout: Of the transformer, while it is trained.

    Raises:
        ValueError: If a number is out of range, or there is no word.

    Source: Vaswani et al. 2017; Xu et al. 2015 (attention to a grid of convolutional features).

    Example:
        >>> captioner = train_captioner(clean)
        >>> captioner.caption(clean.space.encode(clean.images[:1]))
        ('a small red three above a blue seven',)
    """

    coordinates: Tensor

    def __init__(
        self,
        image_shape: tuple[int, ...],
        vocabulary: Vocabulary,
        *,
        max_words: int,
        features: int = 64,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        num_words = len(vocabulary.words)
        for name, value in {"max_words": max_words, "num_layers": num_layers, "known words": num_words}.items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}; raise it")
        if features < 8 or features % 8:
            raise ValueError(f"features must be a multiple of 8, got {features}; pass 64")
        self.image_shape, self.vocabulary, self.max_words = tuple(image_shape), vocabulary, max_words
        channels, *sides = image_shape
        halvings = max(1, math.ceil(math.log2(max(sides) / _MOST_PLACES)))
        layers = _convolution(channels, features // 2)
        for k in range(halvings):
            layers += _convolution(features if k else features // 2, features, stride=2)
        self.layers = nn.Sequential(*layers, *_convolution(features, features))
        self.norm, self.place = nn.LayerNorm(features), nn.Linear(2, features)
        rows, columns = (torch.linspace(-1, 1, math.ceil(side / 2**halvings)) for side in sides)
        self.register_buffer("coordinates", torch.cartesian_prod(rows, columns), persistent=False)
        # beside words and their end there are two beginnings, of clean captions and of noisy ones
        self.embed = nn.Embedding(num_words + 3, features)
        self.order = nn.Parameter(0.1 * torch.randn(max_words, features))
        layer = nn.TransformerDecoderLayer(
            features, 4, 2 * features, dropout=dropout, activation="gelu", batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, num_layers, norm=nn.LayerNorm(features))
        # attention that is even over all places at the start is slow to learn which of them a word is about
        for one in self.decoder.layers:
            one.multihead_attn.in_proj_weight.detach()[: 2 * features] *= _SHARPER  # pyright: ignore
        self.choose = nn.Linear(features, num_words + 1)

    def log_prob(
        self,
        x0: Float[Tensor, "batch channels height width"],
        words: Int64[Tensor, "batch length"],
        noisy: Bool[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, " batch"]:
        """log p(caption | image) in nats, [B].

        Args:
            x0: Images in [-1, 1], [B, C, H, W].
            words: Numbers of words, int64 [B, max_words], at least one, 0 after the last; see ``Vocabulary.numbers``.
            noisy: True for the law of captions that may be wrong, bool [B]; None for none.
        """
        each = self._next(self._encode(x0), words[:, :-1], noisy).gather(2, words.unsqueeze(2)).squeeze(2)
        # words, and the end after them
        counts = F.pad(words[:, :-1] != NO_WORD, (1, 0), value=True)
        return torch.where(counts, each, 0.0).sum(1)

    @torch.no_grad()
    def log_prob_of(self, x0: Float[Tensor, "n channels height width"], captions: Sequence[str]) -> Float[Tensor, " n"]:
        """log p(caption | image) in nats of images and texts, [N].

        Raises:
            DataError: If a caption has an unknown word or none, or more than ``max_words``.
        """
        self.vocabulary.check(captions)
        words = self.vocabulary.numbers(captions, self.max_words + 1)
        long = words[:, self.max_words].nonzero().flatten().tolist()
        if long:
            raise DataError(
                f"a caption must have at most {self.max_words} words, got {captions[long[0]]!r}; write less"
            )
        parts = zip(x0.split(_AT_ONCE), words[:, : self.max_words].split(_AT_ONCE), strict=True)
        return torch.cat([self.log_prob(*part) for part in parts])

    @torch.no_grad()
    def caption(self, x0: Float[Tensor, "n channels height width"]) -> tuple[str, ...]:
        """The captions of images in [-1, 1] by greedy decoding: at each step the likeliest word, or the end.

        They are in lower case and without punctuation, as ``split_words`` reads captions.
        """
        return tuple(caption for some in x0.split(_AT_ONCE) for caption in self._caption(some))

    def _caption(self, x0: Tensor) -> list[str]:
        seen = self._encode(x0)
        words = torch.zeros(len(x0), 0, dtype=torch.int64, device=x0.device)
        ended = torch.zeros(len(x0), dtype=torch.bool, device=x0.device)
        for _ in range(self.max_words):
            chosen = self._next(seen, words)[:, -1].argmax(1).masked_fill(ended, NO_WORD)
            ended = chosen == NO_WORD
            words = torch.cat([words, chosen.unsqueeze(1)], dim=1)
        return [" ".join(self.vocabulary.words[word - 1] for word in row if word != NO_WORD) for row in words.tolist()]

    def _encode(self, x0: Tensor) -> Tensor:
        """The features of images, a row a place, [B, P, F]."""
        if x0.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be [B, {expected}], got {list(x0.shape)}; pass those of its data set")
        return self.norm(self.layers(x0).flatten(2).transpose(1, 2)) + self.place(self.coordinates)

    def _next(self, seen: Tensor, words: Tensor, noisy: Tensor | None = None) -> Tensor:
        """log p(next word | words before it, image) after 0 .. L words, [B, L + 1, choices], of words [B, L]."""
        begin = words.new_full((len(words), 1), self.embed.num_embeddings - 2)
        said = torch.cat([begin if noisy is None else begin + noisy.long().unsqueeze(1), words], dim=1)
        length = said.shape[1]
        later = torch.ones(length, length, dtype=torch.bool, device=words.device).triu(1)
        logits = self.choose(self.decoder(self.embed(said) + self.order[:length], seen, tgt_mask=later))
        logits[:, 0, NO_WORD] = -math.inf
        return logits.log_softmax(-1)


def _convolution(before: int, after: int, *, stride: int = 1) -> list[nn.Module]:
    # few captions are learned in few steps by batch norm; once trained, no image depends on others
    return [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.BatchNorm2d(after), nn.GELU()]
