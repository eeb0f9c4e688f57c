"""Samples as files have them, and a picture of them: a grid of images, or points in the plane."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

from data import AnyKind, VectorKind

from .images import image_grid, save_figure


def as_array(x0: Tensor, kind: AnyKind) -> np.ndarray:
    """Samples in the units of the data.

    Args:
        x0: The samples as networks have them, [N, ...].
        kind: What they are.

    Returns:
        Images as uint8 [N, H, W, C], vectors as float32 [N, D].
    """
    if isinstance(kind, VectorKind):
        return kind.space.decode(x0.cpu()).float().numpy()
    return kind.space.pixels(x0)


def array_shape(kind: AnyKind) -> tuple[int, ...]:
    """The shape of one sample in ``as_array``: (H, W, C) or (D,)."""
    return (*kind.image_shape[1:], kind.image_shape[0])


def has_picture(kind: AnyKind) -> bool:
    """Tell samples that can be shown: images, and points in the plane."""
    return len(kind.image_shape) == 3 or kind.image_shape == (2,)


def picture_of(samples: np.ndarray) -> np.ndarray:
    """A picture of samples: a grid of images uint8 [N, H, W, C], or points of vectors [N, 2], as uint8 [H, W, 3]."""
    return image_grid(samples) if samples.ndim == 4 else scatter(samples)


def scatter(points: np.ndarray) -> np.ndarray:
    """Points [N, 2] in the plane, with axes, as uint8 [H, W, 3]."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    _plot_points(figure.add_subplot(), points)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def _plot_points(axes: Axes, points: np.ndarray) -> None:
    axes.scatter(points[:, 0], points[:, 1], s=4, alpha=0.5, linewidths=0)
    axes.set_aspect("equal")


def save_density(path: Path, points: np.ndarray, x: np.ndarray, y: np.ndarray, density: np.ndarray) -> None:
    """Draw points beside the density that they should have, on the same axes.

    Args:
        path: PNG to write.
        points: [N, 2].
        x: First coordinates of a grid, rising, [A].
        y: Second coordinates, rising, [B].
        density: [B, A], at least 0.
    """
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharex=True, sharey=True)
    _plot_points(left, points)
    left.set(title=f"{len(points):,} samples", xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    shown = right.pcolormesh(x, y, density, shading="gouraud", cmap="viridis", vmin=0)
    right.set(title="density by the probability flow")
    right.set_aspect("equal")
    figure.colorbar(shown, ax=right, shrink=0.8)
    save_figure(path, figure)
