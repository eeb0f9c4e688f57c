"""Random numbers of a data set that is made: functions of a stream, the split and the number of the sample."""

import numpy as np

from ..base import SPLITS


def uniform_draws(stream: int, split: str, count: int, number: int = 0, *, numbers: int = 1) -> np.ndarray:
    """Uniform draws in [0, 1), float64 [count, numbers], whose row i does not depend on ``count``.

    Args:
        stream: Number of the stream, one for each use: ``LESIONS`` and those after it.
        split: ``"train"`` or ``"test"``.
        count: Number of rows.
        number: Another stream of the same use.
        numbers: Numbers a row.
    """
    # RandomState, unlike Generator, promises the same stream in every NumPy release
    seed = [stream, SPLITS.index(split), number]
    return np.random.RandomState(seed).random_sample((count, numbers))


LESIONS, ANNOTATORS, SCENES, WRONG_CAPTIONS, MOVING = range(5)
