"""Images of digits with soft lesions at known places: with a class, or as masks beside their image."""

from pathlib import Path

import numpy as np
import torch

from runtime.registry import choices_message

from ..base import ImageDataset, check_split
from ..errors import DataError
from .digits import load_digits
from .draws import ANNOTATORS, LESIONS, uniform_draws
from .mnist import load_mnist

BASES = ("digits", "mnist")
HEALTHY_IMAGES, HEALTHY_MASKS = 0.5, 0.2  # shares of healthy images in "lesions" and "lesion_masks"
TIGHT = 0.3  # probability that one of several annotators draws the tight outline
_CHUNK = 4096  # images that are made at once


def load_lesions(*, root: Path, split: str, base: str = "digits") -> ImageDataset:
    """Load images of digits, of which about half, class 1, have a lesion: a soft grey disc of random place and size.

    A lesion of radius r, centre m and grey c turns a pixel x at distance d from m into x + w (c - x), rounded, with
    w = min(max(1/2 + (r - d) / u, 0), 1); the unit u is an eighth of the image's side. r is uniform on [1.25, 2] u, m
    uniform where the whole disc is in the image, and c uniform on [0.4, 0.6] of the highest level: black background
    and white strokes both change by 0.4 of the range at least. The true mask is d <= r, where w >= 1/2. Image i of a
    split is image i of the base, with a lesion that depends on split and i alone, the same on every machine.

    Args:
        root: Folder of MNIST; nothing is read from it for digits.
        split: ``"train"`` or ``"test"``, that of the base.
        base: ``"digits"``, 8x8 with 17 levels, or ``"mnist"``, 28x28 with 256.

    Returns:
        uint8 images [N, 1, H, W], labels 0, healthy, and 1, lesion, and ``masks`` [N, 1, H, W], empty where healthy.

    Raises:
        DataError: If the base is unknown or not there.
    """
    images, masks = _with_lesions(_base(base, root, split), split, HEALTHY_IMAGES)
    return images._replace(name="lesions", masks=masks[1])


def load_lesion_masks(*, root: Path, split: str, base: str = "digits", annotators: int = 1) -> ImageDataset:
    """Load the masks of lesions as images of two levels, each beside its image: what a segmentation learns.

    The images are made as those of ``load_lesions``, but one in five is healthy, and has an empty mask. One annotator
    draws the true mask. Of several each draws the tight outline, where w = 1, with probability 0.3, and else the wide
    one, where w > 0; they decide by themselves for each image. So the law of a mask given its image is known.

    Args:
        root: See ``load_lesions``.
        split: ``"train"`` or ``"test"``.
        base: See ``load_lesions``.
        annotators: A, at least 1.

    Returns:
        uint8 masks [N, 1, H, W] with levels 0 and 1, those of the first annotator; ``paired``, the images;
        ``masks`` [N, A, H, W], those of all annotators; and labels 0, healthy, and 1, lesion.

    Raises:
        DataError: If the base is unknown or not there, or there is no annotator.
    """
    if not isinstance(annotators, int) or annotators < 1:
        raise DataError(f"annotators must be at least 1, a whole number, got {annotators!r}; set annotators=2")
    images, (tight, true, wide) = _with_lesions(_base(base, root, split), split, HEALTHY_MASKS)
    masks = true
    if annotators > 1:
        drawn = [uniform_draws(ANNOTATORS, split, len(images), number)[:, None, None] for number in range(annotators)]
        masks = torch.cat([torch.where(torch.from_numpy(one < TIGHT), tight, wide) for one in drawn], dim=1)
    return images._replace(
        images=masks[:, :1].to(torch.uint8),
        num_levels=2,
        name="lesion_masks",
        paired=images.images,
        paired_levels=images.num_levels,
        masks=masks,
    )


def _base(base: str, root: Path, split: str) -> ImageDataset:
    check_split(split)
    if base not in BASES:
        raise DataError(choices_message("base", base, list(BASES)))
    return load_digits(split=split) if base == "digits" else load_mnist(root=root, split=split)


def _with_lesions(
    dataset: ImageDataset, split: str, healthy: float
) -> tuple[ImageDataset, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """The data set with lesions in all but a share of its images, and their tight, true and wide masks [N, 1, H, W]."""
    _, height, width = dataset.image_shape
    unit, top = min(height, width) / 8, dataset.num_levels - 1
    drawn = uniform_draws(LESIONS, split, len(dataset), numbers=5)
    has = drawn[:, 0] >= healthy
    radius = unit * (1.25 + 0.75 * drawn[:, 1])
    y, x = (radius + (side - 2 * radius) * drawn[:, 2 + axis] for axis, side in enumerate((height, width)))
    grey = top * (0.4 + 0.2 * drawn[:, 4])
    rows, columns = np.arange(height)[:, None] + 0.5, np.arange(width) + 0.5
    images, outlines = [], ([], [], [])
    for first in range(0, len(dataset), _CHUNK):
        here = slice(first, first + _CHUNK)
        r, cy, cx, c = (one[here, None, None] for one in (radius, y, x, grey))
        # additions, products and roots alone: rounded alike on every machine
        distance = np.sqrt((rows - cy) ** 2 + (columns - cx) ** 2)
        w = np.clip(0.5 + (r - distance) / unit, 0, 1) * has[here, None, None]
        base = dataset.images[here, 0].numpy().astype(np.float64)
        images.append(np.floor(base + w * (c - base) + 0.5).astype(np.uint8))
        for outline, one in zip(outlines, (w == 1, w >= 0.5, w > 0), strict=True):
            outline.append(one)
    tight, true, wide = (torch.from_numpy(np.concatenate(one)[:, None]) for one in outlines)
    changed = dataset._replace(
        images=torch.from_numpy(np.concatenate(images)[:, None]),
        labels=torch.from_numpy(has.astype(np.int64)),
        num_classes=2,
        class_names=("healthy", "lesion"),
    )
    return changed, (tight, true, wide)
