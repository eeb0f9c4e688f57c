"""Datasets as uint8 [N, C, H, W] plus labels, and batches of them that can be resumed exactly."""

from .base import ImageDataset, ImageKind, to_levels, to_model_space
from .errors import DataError
from .kinds import image_kind
from .loader import TrainBatches, eval_batches
from .registry import available_datasets, load_dataset, register_dataset
from .sizes import ImageSize, height_and_width, one_or_pair

__all__ = [
    "DataError",
    "ImageDataset",
    "ImageKind",
    "ImageSize",
    "TrainBatches",
    "available_datasets",
    "eval_batches",
    "height_and_width",
    "image_kind",
    "load_dataset",
    "one_or_pair",
    "register_dataset",
    "to_levels",
    "to_model_space",
]
