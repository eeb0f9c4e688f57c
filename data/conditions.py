"""Conditions: an image of low resolution, in grey or partly hidden, its values, or what the data have beside it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Float, Integer
from torch import Tensor

from runtime.options import ShowsOptions, option_names, whole_number
from runtime.registry import Registry, choices_message

from .base import ImageDataset, ImageKind
from .errors import DataError
from .space import LevelSpace
from .vectors import AnyKind


class ConditionMaker(ShowsOptions, ABC):
    """A condition; one that is a function of the image is observed after a flip, and so is flipped with it."""


class ValuesMaker(ConditionMaker):
    """Values of an image, such as its mean grey."""

    @abstractmethod
    def size(self, kind: ImageKind) -> int:
        """The number of values.

        Raises:
            DataError: If such images have none.
        """

    @abstractmethod
    def values(
        self, images: Integer[Tensor, "batch channels height width"], kind: ImageKind
    ) -> Float[Tensor, "batch n"]:
        """The values of images [B, C, H, W] of a kind, of order 1, float32 [B, size]."""


class ImageMaker(ConditionMaker):
    """An image that is observed in place of another one.

    Attributes:
        of_paired: True if ``observe`` is given the image that lies beside a sample; see ``Dataset.paired``.
    """

    of_paired: ClassVar[bool] = False

    @abstractmethod
    def kind(self, kind: ImageKind) -> ImageKind:
        """The kind of what is observed.

        Raises:
            DataError: If such images cannot be observed so.
        """

    @abstractmethod
    def observe(
        self, images: Integer[Tensor, "batch channels height width"], kind: ImageKind
    ) -> Integer[Tensor, "batch c h w"]:
        """Observe images [B, C, H, W] of a kind: grey levels, uint8 [B, c, h, w]."""

    def channels(self, kind: ImageKind) -> int:
        """Channels of what a network is told, for images of a kind."""
        return self.kind(kind).image_shape[0]

    def tell(self, observed: Float[Tensor, "batch c h w"], kind: ImageKind) -> Float[Tensor, "batch channels h2 w2"]:
        """Bring an observation in model space to the size of the image, [B, channels, H, W], for a network."""
        return observed


# of red, green and blue, in thousandths (ITU-R BT.601)
LUMINANCE = (299, 587, 114)

CONDITIONS: Registry[ConditionMaker] = Registry("condition")
register_condition = CONDITIONS.register
available_conditions = CONDITIONS.names


@register_condition("lowres")
class LowResolution(ImageMaker):
    """The mean of each box of pixels; a network is told it with its pixels repeated.

    The means have ``factor^2 (L - 1) + 1`` levels where the image has L, and are exact if these are 256 at most;
    else they are rounded to 256 levels. So the small image is a function of the large one, with a probability of its
    own: P(x) = P(y) P(x | y).

    Args:
        factor: Pixels of a side of a box, at least 2.
    """

    def __init__(self, *, factor: int = 2) -> None:
        self.factor = whole_number("factor", factor, least=2, fix="pass 2")

    def kind(self, kind: ImageKind) -> ImageKind:
        """See ``ImageMaker``."""
        channels, height, width = kind.image_shape
        if height % self.factor or width % self.factor:
            raise DataError(f"images of {height}x{width} have no boxes of {self.factor} pixels; pass a factor of both")
        levels = min(256, self.factor**2 * (kind.num_levels - 1) + 1)
        shape = (channels, height // self.factor, width // self.factor)
        return ImageKind(shape, levels, kind.num_classes, kind.class_names)

    def observe(self, images: Tensor, kind: ImageKind) -> Tensor:
        """The sum of each box, scaled to the levels of the observation and rounded."""
        n, channels, height, width = images.shape
        f, top, levels = self.factor, kind.num_levels - 1, self.kind(kind).num_levels
        total = images.long().reshape(n, channels, height // f, f, width // f, f).sum((3, 5))
        # a half is rounded up
        return ((2 * total * (levels - 1) + f * f * top) // (2 * f * f * top)).to(torch.uint8)

    def tell(self, observed: Tensor, kind: ImageKind) -> Tensor:
        """Each pixel repeated: nothing is said between them, and nothing exceeds the range."""
        return observed.repeat_interleave(self.factor, 2).repeat_interleave(self.factor, 3)


@register_condition("gray")
class Gray(ImageMaker):
    """The luminance 0.299 R + 0.587 G + 0.114 B, rounded to the image's levels (ITU-R BT.601)."""

    def kind(self, kind: ImageKind) -> ImageKind:
        """See ``ImageMaker``."""
        channels, height, width = kind.image_shape
        if channels != 3:
            raise DataError(f"condition gray is of images of 3 channels, got {channels}; leave it out")
        return ImageKind((1, height, width), kind.num_levels, kind.num_classes, kind.class_names)

    def observe(self, images: Tensor, kind: ImageKind) -> Tensor:
        """The luminance of each pixel, in whole thousandths until it is rounded."""
        weights = torch.tensor(LUMINANCE, device=images.device).view(1, 3, 1, 1)
        return (((images.long() * weights).sum(1, keepdim=True) + 500) // 1000).to(torch.uint8)


@register_condition("masked")
class Masked(ImageMaker):
    """The image with a part hidden; a network is told it with zeros there, and the mask, 1 where it is seen.

    Args:
        hidden: left, right, top, bottom or center: half of the image, or the middle half of each side.
    """

    def __init__(self, *, hidden: str = "right") -> None:
        seen_part(2, 2, hidden)
        self.hidden = hidden

    def kind(self, kind: ImageKind) -> ImageKind:
        """That of the images."""
        return kind

    def channels(self, kind: ImageKind) -> int:
        """Those of the image, and the mask."""
        return kind.image_shape[0] + 1

    def observe(self, images: Tensor, kind: ImageKind) -> Tensor:
        """The image, with the lowest level in the hidden part."""
        return images * self.mask(kind).to(images)

    def tell(self, observed: Tensor, kind: ImageKind) -> Tensor:
        """The seen part, and the mask."""
        mask = self.mask(kind).to(observed)
        return torch.cat([observed * mask, mask.expand(len(observed), 1, -1, -1)], dim=1)

    def mask(self, kind: ImageKind) -> Float[Tensor, "1 height width"]:
        """1 where the image is seen, 0 where it is hidden, [1, H, W]."""
        height, width = kind.image_shape[-2:]
        return seen_part(height, width, self.hidden)[None].float()


def seen_part(height: int, width: int, hidden: str) -> Bool[Tensor, "height width"]:
    """The mask of an image of which a part is hidden, True where it is seen, [H, W].

    Args:
        height: H.
        width: W.
        hidden: left, right, top, bottom or center: half of the image, or the middle half of each side.

    Raises:
        ValueError: If the part is unknown.
    """
    parts = {
        "left": (slice(None), slice(0, width // 2)),
        "right": (slice(None), slice(width // 2, None)),
        "top": (slice(0, height // 2), slice(None)),
        "bottom": (slice(height // 2, None), slice(None)),
        "center": (slice(height // 4, height - height // 4), slice(width // 4, width - width // 4)),
    }
    if hidden not in parts:
        raise ValueError(choices_message("hidden", hidden, list(parts)))
    mask = torch.ones(height, width, dtype=torch.bool)
    mask[parts[hidden]] = False
    return mask


@register_condition("paired")
class Paired(ImageMaker):
    """The image that lies beside each sample, as it is; see ``Dataset.paired``."""

    of_paired = True

    def kind(self, kind: ImageKind) -> ImageKind:
        """See ``ImageMaker``."""
        if not kind.paired_channels:
            raise DataError(
                "data.condition=paired needs an image beside each sample, which the data do not have; save them as the "
                "array 'paired', uint8 [N, H, W, c], of an npz data set"
            )
        frames = (kind.paired_frames,) if kind.of_clips else ()
        return ImageKind((kind.paired_channels, *frames, *kind.image_shape[-2:]), kind.paired_levels)

    def observe(self, images: Tensor, kind: ImageKind) -> Tensor:
        """The image."""
        return images


@register_condition("edges")
class Edges(ImageMaker):
    """Edges, a function of the image: 1 where the length of the Sobel gradient is at least a threshold, else 0.

    The gradient of images from 0 to 1, whose edge pixels are repeated outside, is divided by 4: beside a straight edge
    from black to white it is 1. Of several channels the steepest one counts.

    Args:
        threshold: Least length of the gradient, in (0, 1.118]: none is longer than sqrt(5) / 2.

    Source: Sobel and Feldman 1968; Zhang et al. 2023 (ControlNet), whose edges are Canny's.
    """

    def __init__(self, *, threshold: float = 0.5) -> None:
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not 0 < threshold <= 1.118:
            raise ValueError(f"threshold must lie in (0, 1.118], got {threshold}; 0.5 is usual")
        self.threshold = float(threshold)

    def kind(self, kind: ImageKind) -> ImageKind:
        """See ``ImageMaker``."""
        return ImageKind((1, *kind.image_shape[1:]), 2)

    def observe(self, images: Tensor, kind: ImageKind) -> Tensor:
        """The edges."""
        padded = torch.nn.functional.pad(images.double(), (1, 1, 1, 1), mode="replicate")
        across, down = padded[..., 2:] - padded[..., :-2], padded[..., 2:, :] - padded[..., :-2, :]
        gx = across[..., :-2, :] + 2 * across[..., 1:-1, :] + across[..., 2:, :]
        gy = down[..., :-2] + 2 * down[..., 1:-1] + down[..., 2:]
        # grey levels are whole numbers, so that the squares are exact on every machine
        steep = (gx**2 + gy**2).amax(1, keepdim=True) >= (4 * self.threshold * (kind.num_levels - 1)) ** 2
        return steep.to(torch.uint8)


@register_condition("ink")
class Ink(ValuesMaker):
    """The mean of all pixels in model space, in [-1, 1]."""

    def size(self, kind: ImageKind) -> int:
        """One."""
        return 1

    def values(self, images: Tensor, kind: ImageKind) -> Tensor:
        """mean(x0), [B, 1]."""
        return LevelSpace(kind.num_levels).encode(images).flatten(1).mean(1, keepdim=True)


@register_condition("values")
class GivenValues(ConditionMaker):
    """The values that the data have beside each image or vector, as they are; see ``Dataset.values``."""

    def size(self, kind: AnyKind) -> int:
        """The number of values.

        Raises:
            DataError: If such data have none.
        """
        if not kind.num_values:
            raise DataError(
                "data.condition=values needs values of each sample, which the data do not have; save them as the array "
                "'values', floats [N, K], of an npz data set"
            )
        return kind.num_values


@register_condition("text")
class GivenText(ConditionMaker):
    """The captions that the data have, in words that a network learns, or as a frozen encoder reads them.

    Args:
        max_words: Words of a caption that a network is told, at least 1; a longer one is cut off. A frozen encoder has
            a limit of its own.
    """

    def __init__(self, *, max_words: int = 32) -> None:
        self.max_words = whole_number("max_words", max_words, least=1, fix="pass 32")

    def network_options(self, kind: AnyKind) -> dict[str, int]:
        """Options of a backbone.

        Raises:
            DataError: If the data have no captions.
        """
        text = kind.text
        if text is None:
            raise DataError(
                "data.condition=text needs a caption of each image, which the data do not have; take data.dataset="
                "scenes, or put captions.jsonl into a folder of images"
            )
        if text.vocabulary:
            return {"cond_words": len(text.vocabulary), "max_words": self.max_words}
        return {"cond_tokens": text.features, "cond_pooled": text.pooled_features}

    def tell(self, texts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The fields of a condition: words cut or filled up to ``max_words``; what an encoder made, as it is."""
        if "words" not in texts:
            return dict(texts)
        words = texts["words"][:, : self.max_words]
        return {"words": torch.nn.functional.pad(words, (0, self.max_words - words.shape[1]))}


def downscale(dataset: ImageDataset, factors: Sequence[int]) -> ImageDataset:
    """The images of a data set as ``LowResolution`` observes them, by several factors one after the other.

    Raises:
        DataError: If a factor does not divide the images, or there are paired images or masks, which would not fit.
    """
    if dataset.paired is not None or dataset.masks is not None:
        raise DataError(f"{dataset.name} has an image or a mask beside each, which is not downscaled; leave it out")
    for factor in factors:
        maker = LowResolution(factor=factor)
        small = maker.kind(dataset.kind)
        images = torch.cat([maker.observe(some, dataset.kind) for some in dataset.images.split(4096)])
        dataset = replace(dataset, images=images, num_levels=small.num_levels)
    return dataset


def make_conditions(names: Sequence[str], **options: Any) -> list[ConditionMaker]:
    """Build makers by name; each option goes to those that have it.

    Args:
        names: Of ``available_conditions()``.
        **options: Options of the makers, such as ``factor=2``.

    Raises:
        DataError: If a name is unknown or comes twice, or an option is of none of them.
    """
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice:
        raise DataError(f"each condition is told once, got {twice[0]} twice; leave one out")
    try:
        known = {name: option_names(CONDITIONS.get(name))[0] for name in names}
        all_known = sorted({option for some in known.values() for option in some})
        for option in options:
            if option not in all_known:
                raise ValueError(
                    choices_message(f"option of conditions {', '.join(names) or '(none)'}:", option, all_known)
                )
        return [CONDITIONS.make(name, **{key: options[key] for key in known[name] if key in options}) for name in names]
    except ValueError as error:
        raise DataError(str(error)) from None
