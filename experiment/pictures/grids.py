"""Samples as files have them, and pictures of samples."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from data import AnyKind, VectorKind
from runtime.files import write_atomically

_CLIPS = 5  # dimensions of several clips


def as_array(x0: Tensor, kind: AnyKind) -> np.ndarray:
    """Samples in the units of the data.

    Args:
        x0: The samples as networks have them, [N, ...].
        kind: What they are.

    Returns:
        Images as uint8 [N, H, W, C], clips as uint8 [N, F, H, W, C], vectors as float32 [N, D].
    """
    if isinstance(kind, VectorKind):
        return kind.space.decode(x0.cpu()).float().numpy()
    return kind.space.pixels(x0)


def array_shape(kind: AnyKind) -> tuple[int, ...]:
    """The shape of one sample in ``as_array``: (H, W, C), (F, H, W, C) or (D,)."""
    return (*kind.image_shape[1:], kind.image_shape[0])


def has_picture(kind: AnyKind) -> bool:
    """Tell samples that can be shown: images, clips, and points in the plane."""
    return len(kind.image_shape) in (3, 4) or kind.image_shape == (2,)


def picture_of(samples: np.ndarray) -> np.ndarray:
    """A picture of samples, uint8 [H, W, 3].

    Args:
        samples: Images uint8 [N, H, W, C], shown as a grid; clips uint8 [N, F, H, W, C], each a row of its frames; or
            vectors [N, 2], shown as points.
    """
    if samples.ndim == _CLIPS:
        return image_grid(samples.reshape(-1, *samples.shape[2:]), columns=samples.shape[1])
    return image_grid(samples) if samples.ndim == 4 else scatter(samples)


def film_of(clips: np.ndarray) -> list[np.ndarray]:
    """Clips that run side by side: for each frame a grid of all clips, uint8 [H, W, 3].

    Args:
        clips: uint8 [N, F, H, W, C].
    """
    return [image_grid(frame) for frame in clips.swapaxes(0, 1)]


def scatter(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] in the plane, with axes, as uint8 [H, W, 3]."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    plot_points(figure.add_subplot(), points)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def plot_points(axes: Axes, points: np.ndarray) -> None:
    """Plot points [N, 2] on axes of equal scale."""
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.set_aspect("equal")


def image_grid(images: np.ndarray, *, columns: int | None = None, smallest: int = 48) -> np.ndarray:
    """Tile images, as square as can be, each enlarged by a whole number to at least ``smallest`` pixels.

    Args:
        images: uint8 [N, H, W, C].
        columns: Images a row; None for about as many as make the picture square.
        smallest: Least size of a tile.

    Returns:
        uint8 [rows, columns, 3].
    """
    num_images, height, width, channels = images.shape
    num_columns = min(num_images, columns or math.ceil(math.sqrt(num_images * height / width)))
    zoom = max(1, math.ceil(smallest / min(height, width)))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    gap, rows = 2, math.ceil(num_images / num_columns)
    tile_height, tile_width = height * zoom + gap, width * zoom + gap
    canvas = np.full((rows * tile_height + gap, num_columns * tile_width + gap, 3), 127, dtype=np.uint8)
    for k, image in enumerate(images):
        top, left = k // num_columns * tile_height + gap, k % num_columns * tile_width + gap
        shown = image[..., :3] if channels >= 3 else image[..., :1]
        canvas[top : top + height * zoom, left : left + width * zoom] = shown
    return canvas


def save_png(path: Path, pixels: np.ndarray) -> None:
    """Write uint8 [H, W, 3] as PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    write_atomically(path, buffer.getvalue())


def save_film(path: Path, frames: Sequence[np.ndarray], durations: Sequence[int]) -> None:
    """Write pictures uint8 [H, W, 3] as a GIF that runs over and over, each shown for some milliseconds."""
    first, *others = (Image.fromarray(frame) for frame in frames)
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=others, duration=list(durations), loop=0)
    write_atomically(path, buffer.getvalue())
