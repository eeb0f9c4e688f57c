"""Common parts of the tests of training steps."""

from pathlib import Path

import torch

from data import ImageDataset

ROOT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
LEVELS = 17


def digits_like(count: int) -> ImageDataset:
    """Random images of the size of digits."""
    images = torch.randint(LEVELS, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageDataset(images, torch.arange(count) % 10, LEVELS, 10, "digits", "train")
