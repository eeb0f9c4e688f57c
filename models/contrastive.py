"""A contrastive pair: images and captions as vectors of unit length, near each other where they belong together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn import functional as F

from data import DataError, Vocabulary

from .backbones import WordEncoder

MAX_LOG_SCALE = math.log(100)
_AT_ONCE = 500  # samples embedded at once


class ImageEncoder(nn.Module):
    """A small convolutional encoder: three layers, of which two halve the sides.

    Args:
        image_shape: (C, H, W) of the images.
        features: F, a multiple of 8, the channels of the last two layers; the first has half as many.

    Attributes:
        num_features: Numbers that an image becomes, F ceil(H / 4) ceil(W / 4).

    Raises:
        ValueError: If F is no such number.
    """

    def __init__(self, image_shape: tuple[int, ...], *, features: int = 48) -> None:
        super().__init__()
        if features < 8 or features % 8:
            raise ValueError(f"features must be a multiple of 8, got {features}; pass 48")
        self.image_shape, self.features = tuple(image_shape), features
        channels, height, width = image_shape
        layers: list[nn.Module] = []
        for before, after, stride in (
            (channels, features // 2, 1),
            (features // 2, features, 2),
            (features, features, 2),
        ):
            layers += [nn.Conv2d(before, after, 3, stride=stride, padding=1), nn.GroupNorm(4, after), nn.GELU()]
        self.layers = nn.Sequential(*layers, nn.Flatten())
        self.num_features = features * math.ceil(height / 4) * math.ceil(width / 4)

    def forward(self, x0: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch numbers"]:
        """Encode images in [-1, 1].

        Raises:
            ValueError: If they are of another shape.
        """
        if x0.shape[1:] != self.image_shape:
            expected = ", ".join(map(str, self.image_shape))
            raise ValueError(f"images must be [B, {expected}], got {list(x0.shape)}; pass those of its data set")
        return self.layers(x0)


class ContrastivePair(nn.Module):
    """An image encoder and a text encoder that are trained together (Radford et al. 2021).

    Both are projected to D numbers and scaled to unit length, u_i and w_j. With a learned scale s, at most 100, the
    loss is that of finding the caption of each of B images among all B, and the image of each caption,

        L = -1/(2 B) sum_i [log softmax_j(s <u_i, w_j>)_i + log softmax_j(s <w_i, u_j>)_i],

    which is ln B for a pair that knows nothing. At its minimum s <u, w> = log p(x, c) / (p(x) p(c)) + const for many
    pairs (van den Oord et al. 2018).

    Args:
        image_encoder: Of the images.
        text_encoder: Of words.
        vocabulary: The words that the text encoder knows, in their order.
        features: D.

    Raises:
        ValueError: If the text encoder knows another number of words.

    Example:
        >>> pair = train_pair(load_dataset("scenes", root="downloads", split="train"))
        >>> z = pair.embed_captions(["a red three above a small blue seven"])
    """

    def __init__(
        self, image_encoder: ImageEncoder, text_encoder: WordEncoder, vocabulary: Vocabulary, *, features: int = 64
    ) -> None:
        super().__init__()
        if text_encoder.num_words != len(vocabulary.words):
            raise ValueError(
                f"text_encoder must know the {len(vocabulary.words)} words of the vocabulary, "
                f"got {text_encoder.num_words}; build it with num_words={len(vocabulary.words)}"
            )
        self.image_encoder, self.text_encoder, self.vocabulary = image_encoder, text_encoder, vocabulary
        self.features = features
        self.project_image = nn.Linear(image_encoder.num_features, features, bias=False)
        self.project_text = nn.Linear(text_encoder.embed.embedding_dim, features, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(-math.log(0.07)))

    def of_images(self, x0: Float[Tensor, "batch channels height width"]) -> Float[Tensor, "batch dim"]:
        """The vectors of images in [-1, 1], of unit length, [B, D]."""
        return F.normalize(self.project_image(self.image_encoder(x0)), dim=1)

    def of_words(self, words: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch dim"]:
        """The vectors of captions in numbers of words, of unit length, [B, D]; NaN where there is no word."""
        return F.normalize(self.project_text(self.text_encoder(words).pooled), dim=1)

    def loss(
        self, x0: Float[Tensor, "batch channels height width"], words: Int64[Tensor, "batch length"]
    ) -> Float[Tensor, ""]:
        """L in nats, of images [B, C, H, W] and the words of their captions [B, L]."""
        return contrastive_loss(self.of_images(x0), self.of_words(words), self.log_scale.exp())

    def clamp_scale(self) -> None:
        """Bring the scale down to 100, if it is above; after each step of training."""
        with torch.no_grad():
            self.log_scale.clamp_(max=MAX_LOG_SCALE)

    @torch.no_grad()
    def embed_images(self, x0: Float[Tensor, "n channels height width"]) -> Float[Tensor, "n dim"]:
        """The vectors of images in [-1, 1], of length sqrt(D): a number has a mean square of 1, as diffusion needs."""
        return math.sqrt(self.features) * torch.cat([self.of_images(some) for some in x0.split(_AT_ONCE)])

    @torch.no_grad()
    def embed_captions(self, captions: Sequence[str]) -> Float[Tensor, "n dim"]:
        """The vectors of captions, of length sqrt(D), [N, D].

        Raises:
            DataError: If one has an unknown word or none, or is too long, or there is none.
        """
        if not captions:
            raise DataError("captions must be at least 1, got 0; write one")
        self.vocabulary.check(captions)
        most = self.text_encoder.max_words
        words = self.vocabulary.numbers(captions, most + 1)
        long = words[:, most].nonzero().flatten().tolist()
        if long:
            raise DataError(f"a caption must have at most {most} words, got {captions[long[0]]!r}; write less")
        return math.sqrt(self.features) * torch.cat([self.of_words(some) for some in words[:, :most].split(_AT_ONCE)])


def contrastive_loss(
    images: Float[Tensor, "batch dim"], captions: Float[Tensor, "batch dim"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """The symmetric loss of a batch of pairs, in nats: the mean cross-entropy of either's place among the others."""
    logits, own = scale * images @ captions.mT, torch.arange(len(images), device=images.device)
    return (F.cross_entropy(logits, own) + F.cross_entropy(logits.mT, own)) / 2
