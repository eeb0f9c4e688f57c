"""Splits of images for benchmarks that measure nothing else."""

from __future__ import annotations

from data import ImageDataset
from experiment.build import build_dataset
from experiment.config import Config


def load_images(config: Config, split: str) -> ImageDataset:
    """A split of ``config.data``, which must be of images.

    Raises:
        SystemExit: If it is of vectors.
    """
    dataset = build_dataset(config, split)
    if not isinstance(dataset, ImageDataset):
        raise SystemExit(f"the benchmark needs images, got the vectors of {dataset.name}; try configs/vp/digits.py")
    return dataset
