"""Heights and widths of images, as settings say them."""

from collections.abc import Sequence

from .errors import DataError

ImageSize = int | tuple[int, int]
"""Height and width as one number, or as (height, width)."""


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images.

    Args:
        image_size: One number for both, or (height, width), each at least 1.

    Raises:
        DataError: If it is neither.
    """
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (int(image_size), int(image_size))
    if len(sides) != 2 or min(sides) < 1:
        raise DataError(
            f"image_size must be one number, or height and width, each at least 1, got {image_size}; "
            "set it to what to train at"
        )
    return sides[0], sides[1]


def one_or_pair(height: int, width: int) -> ImageSize:
    """The shortest way to say a size: one number where height and width are equal."""
    return height if height == width else (height, width)
