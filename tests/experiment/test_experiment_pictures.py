from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import LevelSpace
from experiment.pictures import (
    image_grid,
    save_bound_curve,
    save_learning_curve,
    save_png,
)


@pytest.mark.parametrize("num_levels", [2, 17, 256])
def test_pixels_are_the_levels_spread_over_0_to_255(num_levels: int):
    levels = torch.arange(num_levels)
    x = (2 * levels / (num_levels - 1) - 1).reshape(1, 1, 1, -1)
    pixels = LevelSpace(num_levels).pixels(x)
    assert pixels.shape == (1, 1, num_levels, 1) and pixels.dtype == np.uint8
    assert pixels.flatten().tolist() == [round(255 * k / (num_levels - 1)) for k in range(num_levels)]
    # what the sampler left outside the range is clipped, not wrapped
    assert LevelSpace(num_levels).pixels(torch.tensor([[[[-1.7, 1.2]]]])).flatten().tolist() == [0, 255]


def test_channels_go_last():
    x = torch.stack([torch.full((2, 3), value) for value in (-1.0, 0.0, 1.0)])[None]
    pixels = LevelSpace(256).pixels(x)
    assert pixels.shape == (1, 2, 3, 3)
    assert pixels[0, 0, 0].tolist()[::2] == [0, 255]


def test_grid_places_every_image(tmp_path: Path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None] * np.ones((1, 16, 16, 1), np.uint8)
    grid = image_grid(images, columns=3, smallest=32)
    assert grid.shape == (2 * 34 + 2, 3 * 34 + 2, 3)
    for k in range(5):
        top, left = k // 3 * 34 + 2, k % 3 * 34 + 2
        assert (grid[top : top + 32, left : left + 32] == k).all()
    assert (grid[36:, 70:] == 127).all()
    save_png(tmp_path / "deep" / "grid.png", grid)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "deep" / "grid.png")), grid)


def test_colours_are_kept():
    image = np.zeros((1, 32, 32, 3), np.uint8)
    image[..., 1] = 200
    assert (image_grid(image)[2:50, 2:50] == [0, 200, 0]).all()


@pytest.mark.usefixtures("drawn")
def test_curves_are_drawn(tmp_path: Path):
    save_learning_curve(tmp_path / "one.png", [10], [0.5])
    save_learning_curve(tmp_path / "many.png", list(range(200)), [1 / (k + 1) for k in range(200)])
    save_bound_curve(tmp_path / "bound.png", [0.1, 0.5, 1.0], [1e-1, 1e-3, 0.0], [1e-2, float("nan"), 0.0])
    for name in ("one", "many", "bound"):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png").convert("L"))
        # a line in ink, on white
        assert (pixels < 200).sum() > 500 and (pixels > 250).mean() > 0.5
