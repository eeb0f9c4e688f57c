"""scikit-learn's digits: 1,797 images of 8x8 with 17 grey levels, embedded in that package."""

import numpy as np
import torch

from ..base import DIGITS, ImageDataset, fixed_split

NUM_TEST = 360


def load_digits(*, split: str) -> ImageDataset:
    """Load scikit-learn's ``load_digits``; nothing is read from ``root``.

    The source has no official split: here a fixed permutation (seed 0) puts 1,437 images into train and 360 into
    test, the same ones on every machine, each split in the order of the source.

    Args:
        split: ``"train"`` or ``"test"``.

    Returns:
        uint8 images [N, 1, 8, 8] with levels 0 .. 16 and labels 0 .. 9.

    Raises:
        DataError: If ``split`` is unknown.
    """
    # Imported here: scikit-learn takes longer to import than every other dataset needs to load.
    from sklearn.datasets import load_digits as load_from_sklearn

    images, labels = load_from_sklearn(return_X_y=True)
    chosen = fixed_split(len(images), split, num_test=NUM_TEST)
    return ImageDataset(
        images=torch.from_numpy(images[chosen].astype(np.uint8).reshape(-1, 1, 8, 8)),
        labels=torch.from_numpy(labels[chosen].astype(np.int64)),
        num_levels=17,
        num_classes=10,
        name="digits",
        split=split,
        class_names=DIGITS,
        split_source=f"{NUM_TEST} images held out, by a fixed permutation",
        other_split_size=len(images) - len(chosen),
    )
