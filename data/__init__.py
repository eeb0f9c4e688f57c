"""Datasets as uint8 [N, C, H, W] plus labels, and batches of them that can be resumed exactly."""

from .base import ImageDataset, to_levels, to_model_space
from .errors import DataError
from .kinds import ImageKind, blank_dataset, image_kind
from .loader import TrainBatches, eval_batches
from .registry import available_datasets, load_dataset, register_dataset

__all__ = [
    "DataError",
    "ImageDataset",
    "ImageKind",
    "TrainBatches",
    "available_datasets",
    "blank_dataset",
    "eval_batches",
    "image_kind",
    "load_dataset",
    "register_dataset",
    "to_levels",
    "to_model_space",
]
