"""What is known of a data set before it is loaded, or even there."""

from dataclasses import dataclass

import torch

from .base import ImageDataset
from .sizes import ImageSize, height_and_width, one_or_pair


@dataclass(frozen=True)
class ImageKind:
    """The images of a data set, but for their pixels; None is what only loading says.

    Attributes:
        channels: C.
        image_size: Height and width: one number for squares, or (H, W).
        num_levels: Number of grey levels.
        num_classes: Number of classes.
    """

    channels: int | None
    image_size: ImageSize | None
    num_levels: int
    num_classes: int | None


_OFFICIAL = {
    "digits": ImageKind(1, 8, 17, 10),
    "mnist": ImageKind(1, 28, 256, 10),
    "cifar10": ImageKind(3, 32, 256, 10),
}


def image_kind(name: str, *, image_size: ImageSize | None = None, channels: int | None = None) -> ImageKind | None:
    """What ``load_dataset`` would load under these arguments, as far as that is known without loading.

    Args:
        name: One of ``available_datasets()``.
        image_size: As for ``load_dataset``.
        channels: As for ``load_dataset``.

    Returns:
        The kind; None of a data set of which nothing is known before it is loaded.
    """
    if name == "folder":
        size = None if image_size is None else one_or_pair(*height_and_width(image_size))
        return ImageKind(channels, size, 256, None)
    return _OFFICIAL.get(name)


def blank_dataset(
    name: str, *, channels: int, image_size: ImageSize, num_levels: int, num_classes: int | None = None
) -> ImageDataset:
    """One black image in place of a data set, for what needs to know of it but the kind of its images.

    Args:
        name: Name of the data set that it stands for.
        channels: C.
        image_size: Height and width: one number for squares, or (H, W).
        num_levels: Number of grey levels.
        num_classes: Number of classes; None is one, as of images without labels.

    Returns:
        A train split of one image.
    """
    images = torch.zeros(1, channels, *height_and_width(image_size), dtype=torch.uint8)
    return ImageDataset(images, torch.zeros(1, dtype=torch.int64), num_levels, num_classes or 1, name, "train")
