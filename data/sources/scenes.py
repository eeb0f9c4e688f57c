"""Pictures of two coloured digits of two sizes, one beside or above the other, with captions."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch

from runtime.registry import choices_message

from ..base import ImageDataset, check_split
from ..errors import DataError
from ..recaptioning import REWRITTEN_SHARE, recaptioned_from
from .digits import load_digits
from .mnist import load_mnist
from .scene_words import captions_of, scene_draws, scenes_of

TRAIN_PER_TEST = 20  # training images for each test image
# side of the picture, and of small and big digits, in pixels
GEOMETRY = {"digits": (16, {"small": 6, "big": 8}), "mnist": (32, {"small": 10, "big": 14})}
CHANNELS = {  # of red, green and blue, those that are lit
    "red": (1, 0, 0),
    "green": (0, 1, 0),
    "blue": (0, 0, 1),
    "yellow": (1, 1, 0),
    "purple": (1, 0, 1),
    "white": (1, 1, 1),
}


def load_scenes(
    *,
    root: Path,
    split: str,
    base: str = "digits",
    num_images: int = 20_000,
    pairs: str = "seen",
    wrong_captions: float = 0.0,
    recaptioned: str = "",
    recaptioned_share: float = REWRITTEN_SHARE,
) -> ImageDataset:
    """Load pictures of two digits on black, each with a caption such as "a small red three above a blue seven".

    A scene is two objects, each of 2 sizes, 6 colours and 10 digits, and one of four relations of the first to the
    second. All scenes are equally likely, but for six of the 60 pairs of colour and digit, ``HELD_OUT``, which never
    occur. Upper and lower object lie in the upper and lower half of the picture, left and right ones in its halves
    likewise: anywhere in their half along the relation, and up to an eighth of the picture's side from its middle
    across. "small" is always said; "big" is said of half of the big objects, by themselves: no word of size means big.

    The digits are images of the base, of the same split, cut to what is not black and shrunk to a longer side of 6
    pixels or 8 (of MNIST 10 or 14) by the means of areas, rounded. Colours are saturated, red (g, 0, 0) to white
    (g, g, g) for a grey g, so that levels stay those of the base. Image i and its caption depend on split and i alone,
    the same on every machine: a larger data set begins with the smaller one.

    Args:
        root: Folder of MNIST; nothing is read from it for digits.
        split: ``"train"`` or ``"test"``, that of the base.
        base: ``"digits"``, for 16x16 with 17 levels, or ``"mnist"``, 32x32 with 256.
        num_images: Images of the train split, at least 20; the test split has a twentieth.
        pairs: ``"seen"``; or ``"held_out"``, of the test split alone: both objects are of pairs that never occur
            else, so that all that is measured of an object is of such a pair.
        wrong_captions: Probability rho of a caption to be that of another scene, drawn by itself, which may say the
            same by chance. Image i has a wrong one if u_i < rho, for a u_i of its own: at a higher rho the same images
            have, and more. The pictures are the same for every rho; ``scenes_of`` has the truth.
        recaptioned: File of rewritten captions of images train/0, train/1, ..., test/0, ...; see
            ``recaptioned_from``.
        recaptioned_share: Probability of an image to be told the rewritten one; see ``mix_captions``.

    Returns:
        uint8 images [N, 3, H, W], ``captions``, ``sample_names``, and labels that are all zero.

    Raises:
        DataError: If an option is out of range, or the base is not there.
    """
    check_split(split)
    if base not in GEOMETRY:
        raise DataError(choices_message("base", base, list(GEOMETRY)))
    if isinstance(num_images, bool) or not isinstance(num_images, int) or num_images < TRAIN_PER_TEST:
        raise DataError(
            f"num_images must be a whole number, at least {TRAIN_PER_TEST}, got {num_images!r}; try num_images=20000"
        )
    if pairs == "held_out" and split == "train":
        raise DataError("pairs=held_out is of the test split alone, got the train split; train with pairs=seen")
    sizes = {"train": num_images, "test": num_images // TRAIN_PER_TEST}
    count, other = sizes[split], sizes["test" if split == "train" else "train"]
    captions, notes = captions_of(split, count, pairs=pairs, wrong_captions=wrong_captions), ()
    names = tuple(f"{split}/{i}" for i in range(count))
    if recaptioned:
        every = (f"{one}/{i}" for one, size in sizes.items() for i in range(size))
        originals = dict(zip(names, captions, strict=True))
        told, notes = recaptioned_from(Path(recaptioned), names, originals, every=every, share=recaptioned_share)
        captions = tuple(told[name] for name in names)
    digits = load_digits(split=split) if base == "digits" else load_mnist(root=root, split=split)
    return ImageDataset(
        images=torch.from_numpy(_pictures(digits, count, pairs, base)),
        labels=torch.zeros(count, dtype=torch.int64),
        num_levels=digits.num_levels,
        num_classes=1,
        name="scenes",
        split=split,
        split_source=f"made of digits of the {split} split: {digits.split_source}",
        other_split_size=None if pairs == "held_out" else other,
        notes=notes,
        captions=captions,
        sample_names=names,
    )


def _pictures(digits: ImageDataset, count: int, pairs: str, base: str) -> np.ndarray:
    """Draw the first scenes, uint8 [count, 3, H, W]."""
    side, sizes = GEOMETRY[base]
    drawn, greys = scene_draws(digits.split, count, pairs), digits.images[:, 0].numpy()
    boxes, glyphs = _boxes(greys), {}
    of_digit = [np.flatnonzero(digits.labels.numpy() == digit) for digit in range(10)]
    pictures = np.zeros((count, 3, side, side), np.uint8)
    for picture, scene, row in zip(pictures, scenes_of(digits.split, count, pairs=pairs), drawn, strict=True):
        # in the order of naming, and of that in space
        places = ((scene.first, row[7:10], scene.relation in ("below", "right of")),
                  (scene.second, row[10:13], scene.relation in ("above", "left of")))  # fmt: skip
        for one, (u_image, u_along, u_across), is_second in places:
            choices, size = of_digit[one.digit], sizes[one.size]
            key = choices[int(u_image * len(choices))], size
            if key not in glyphs:
                glyphs[key] = _shrunk(greys[key[0]][boxes[key[0]]], size)
            glyph = glyphs[key]
            along = is_second * side // 2 + int(u_along * (side // 2 - size + 1))
            across = (side - size) // 2 - side // 8 + int(u_across * (side // 4 + 1))
            top, left = (along, across) if scene.relation in ("above", "below") else (across, along)
            height, width = glyph.shape
            top, left = top + (size - height) // 2, left + (size - width) // 2
            for channel, lit in enumerate(CHANNELS[one.colour]):
                if lit:
                    picture[channel, top : top + height, left : left + width] = glyph
    return pictures


def _boxes(grey: np.ndarray) -> list[tuple[slice, slice]]:
    """The rows and columns of each image [M, H, W] between its first and last that are not black."""
    boxes = []
    for lit in np.any(grey > 0, axis=2), np.any(grey > 0, axis=1):
        first, beyond = lit.argmax(1), grey.shape[-1] - np.flip(lit, 1).argmax(1)
        boxes.append([slice(*ends) for ends in zip(first.tolist(), beyond.tolist(), strict=True)])
    return list(zip(*boxes, strict=True))


def _shrunk(grey: np.ndarray, size: int) -> np.ndarray:
    """An image with a longer side of ``size``: each pixel the mean of its area, rounded."""
    grey = grey.astype(np.int64)
    longer = max(grey.shape)
    height, width = (max(1, (2 * size * n + longer) // (2 * longer)) for n in grey.shape)
    rows, columns = _areas(grey.shape[0], height), _areas(grey.shape[1], width)
    area = grey.size
    # whole numbers until the end: rounded alike on every machine
    return ((2 * (rows @ grey @ columns.T) + area) // (2 * area)).astype(np.uint8)


@lru_cache
def _areas(before: int, after: int) -> np.ndarray:
    """The part of each of ``before`` pixels that each of ``after`` covers, in units of 1 / after, [after, before]."""
    edges = np.arange(after + 1) * before, np.arange(before + 1) * after
    low = np.maximum(edges[0][:-1, None], edges[1][:-1])
    high = np.minimum(edges[0][1:, None], edges[1][1:])
    return np.maximum(high - low, 0)
