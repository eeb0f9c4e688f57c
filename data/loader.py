"""Batches of a data set in its fixed order."""

from collections.abc import Iterator

from torch import Tensor

from .base import Dataset
from .errors import DataError


def eval_batches(dataset: Dataset, *, batch_size: int, num_images: int = 0) -> Iterator[tuple[Tensor, Tensor]]:
    """Go once through the first images of a dataset, in order; the last batch may be short.

    Args:
        dataset: Images to go through.
        batch_size: Images a batch, at least 1.
        num_images: How many images; 0 means all of them.

    Returns:
        Iterator over samples as they are stored, [B, ...], and int64 labels [B]. Arguments are checked at the call,
        not at the first batch.

    Raises:
        DataError: If ``batch_size`` or ``num_images`` is out of range.
    """
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}; choose a positive batch size")
    if not 0 <= num_images <= len(dataset):
        raise DataError(
            f"num_images must be 0 (everything) .. {len(dataset)}, the size of the {dataset.name} {dataset.split} "
            f"split, got {num_images}; ask for fewer images"
        )
    end = num_images or len(dataset)
    return zip(dataset.stored[:end].split(batch_size), dataset.labels[:end].split(batch_size), strict=True)
