"""Datasets as uint8 [N, C, H, W] plus labels, and batches of them that can be resumed exactly."""

from .base import ImageDataset, to_levels, to_model_space
from .errors import DataError
from .kinds import ImageKind, blank_dataset, image_kind
from .loader import TrainBatches, eval_batches
from .registry import available_datasets, load_dataset, register_dataset
from .sizes import ImageSize, one_or_pair

__all__ = [
    "DataError",
    "ImageDataset",
    "ImageKind",
    "ImageSize",
    "TrainBatches",
    "available_datasets",
    "blank_dataset",
    "eval_batches",
    "image_kind",
    "load_dataset",
    "one_or_pair",
    "register_dataset",
    "to_levels",
    "to_model_space",
]
