"""Datasets as uint8 [N, C, H, W] plus labels, and batches of them that can be resumed exactly."""

from .base import ImageDataset, to_levels, to_model_space
from .errors import DataError
from .loader import TrainBatches, eval_batches
from .registry import available_datasets, load_dataset, register_dataset

__all__ = [
    "DataError",
    "ImageDataset",
    "TrainBatches",
    "available_datasets",
    "eval_batches",
    "load_dataset",
    "register_dataset",
    "to_levels",
    "to_model_space",
]
