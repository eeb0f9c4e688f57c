"""The images of data sets that are known before they are loaded, or even there."""

from .base import DIGITS, ImageKind
from .sources.cifar10 import CLASS_NAMES

_OFFICIAL = {
    "digits": ImageKind((1, 8, 8), 17, 10, DIGITS),
    "mnist": ImageKind((1, 28, 28), 256, 10, DIGITS),
    "cifar10": ImageKind((3, 32, 32), 256, 10, CLASS_NAMES),
}


def image_kind(name: str) -> ImageKind | None:
    """The kind of images that ``load_dataset`` would load under this name; None where only loading says it.

    Args:
        name: One of ``available_datasets()``.
    """
    return _OFFICIAL.get(name)
