"""A picture of restored images: a row each, with labelled columns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiment.pictures import image_grid

_WIDEST = 64  # pixels of a label, in which "sample 10" fits


def restoration_picture(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """Put images side by side under the names of their columns.

    Args:
        columns: Images by name, uint8 [N, H, W, C] each.

    Returns:
        uint8 [height, width, 3].
    """
    colours = [one[..., : 3 if one.shape[3] >= 3 else 1] for one in columns.values()]
    shown = [np.broadcast_to(one, (*one.shape[:3], 3)) for one in colours]
    rows = np.stack(shown, axis=1)
    num_columns, height, width = rows.shape[1:4]
    # as wide as its label, also where images are high and narrow
    smallest = _WIDEST * min(height, width) / width
    grid = image_grid(rows.reshape(-1, height, width, 3), columns=num_columns, smallest=round(smallest))
    font = ImageFont.load_default()
    header = Image.new("RGB", (grid.shape[1], 16), (127, 127, 127))
    for k, name in enumerate(columns):
        # the grid has a gap of 2 pixels before each tile
        left = 2 + k * (grid.shape[1] - 2) // num_columns
        ImageDraw.Draw(header).text((left + 2, 2), name, fill=(255, 255, 255), font=font)
    return np.concatenate([np.asarray(header), grid])
