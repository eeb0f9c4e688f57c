"""Sizes of images, square or not, and widths and sizes of the levels that halve them."""

import operator
from collections.abc import Sequence

ImageSize = int | tuple[int, int]
"""Height and width as one number, or as (height, width)."""


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """Height and width of images.

    Args:
        image_size: One number for both, or (height, width), each at least 1.

    Raises:
        ValueError: It is neither.
    """
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    try:
        height, width = map(operator.index, sides)
    except (TypeError, ValueError):
        raise ValueError(f"image_size must be one number or (height, width), got {image_size!r}") from None
    if min(sides) < 1:
        raise ValueError(f"image_size must be at least 1, got {image_size}; raise it")
    return height, width


def one_or_pair(height: int, width: int) -> ImageSize:
    """The shortest way to say a size: one number where height and width are equal."""
    return height if height == width else (height, width)


def level_widths(channels: int, channel_mult: Sequence[float]) -> list[int]:
    """Channels of each level, ``channels`` times each multiple; a multiple may be a fraction, as 0.5.

    Raises:
        ValueError: A level would have no or a broken number of channels.
    """
    widths = [channels * mult for mult in channel_mult]
    if not widths or any(width < 1 or abs(width - round(width)) > 1e-6 for width in widths):
        raise ValueError(
            "channel_mult must give each level a whole number of channels, got "
            f"{tuple(channel_mult)} times {channels}; change one of them"
        )
    return [round(width) for width in widths]


def level_sizes(image_size: int | Sequence[int], num_levels: int) -> list[tuple[int, int]]:
    """Height and width of each level, halved from one to the next.

    Args:
        image_size: Of the first level; see ``height_and_width``.
        num_levels: Number of levels.

    Raises:
        ValueError: A side cannot be halved so often.
    """
    sides = height_and_width(image_size)
    factor = 2 ** (num_levels - 1)
    if any(side % factor for side in sides):
        possible = 1 + next(i for i in range(num_levels) if any(side % 2 ** (i + 1) for side in sides))
        shown, padded = (
            "x".join(map(str, dict.fromkeys(both))) for both in (sides, [-(-s // factor) * factor for s in sides])
        )
        raise ValueError(
            f"image_size {shown} cannot be halved {num_levels - 1} times; use channel_mult with {possible} "
            f"level{'s' if possible > 1 else ''} or pad to {padded}"
        )
    return [(sides[0] // 2**i, sides[1] // 2**i) for i in range(num_levels)]


def level_resolutions(image_size: int | Sequence[int], num_levels: int) -> list[int]:
    """The resolution of each level, by which ``attention_resolutions`` names it: its shorter side.

    So images and their transposes have the same network.

    Args:
        image_size: Of the first level; see ``height_and_width``.
        num_levels: Number of levels.

    Raises:
        ValueError: A side cannot be halved so often.
    """
    return [min(size) for size in level_sizes(image_size, num_levels)]
