"""A grid of images with their captions."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_TILE, _LINE, _GAP = 144, 13, 4  # pixels: the least side of an image, a line of text, what is between
_CHARACTERS = 24  # of a line under an image of _TILE pixels
_MOST_LINES = 4


def captioned_grid(images: np.ndarray, captions: Sequence[str]) -> np.ndarray:
    """Tile images with their captions under them, each enlarged by a whole number; what does not fit ends in "...".

    Args:
        images: uint8 [N, H, W, C].
        captions: One an image.

    Returns:
        uint8 [height, width, 3].
    """
    num_images, height, width, channels = images.shape
    zoom = max(1, math.ceil(_TILE / min(height, width)))
    characters = _CHARACTERS * width * zoom // _TILE
    texts = [textwrap.wrap(caption, characters, max_lines=_MOST_LINES, placeholder=" ...") for caption in captions]
    below = _LINE * max((len(lines) for lines in texts), default=0) + _GAP
    tile_width, tile_height = width * zoom + _GAP, height * zoom + _GAP + below
    columns = min(num_images, math.ceil(math.sqrt(num_images * tile_height / tile_width)))
    rows = math.ceil(num_images / columns)
    canvas = Image.new("RGB", (columns * tile_width + _GAP, rows * tile_height + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(_LINE - 2)
    for k, (image, lines) in enumerate(zip(images, texts, strict=True)):
        left, top = k % columns * tile_width + _GAP, k // columns * tile_height + _GAP
        shown = image if channels == 3 else image[..., :1].repeat(3, axis=-1)
        large = shown.repeat(zoom, axis=0).repeat(zoom, axis=1)
        canvas.paste(Image.fromarray(np.ascontiguousarray(large)), (left, top))
        for number, line in enumerate(lines):
            draw.text((left, top + height * zoom + number * _LINE), line, fill="black", font=font)
    return np.asarray(canvas)
