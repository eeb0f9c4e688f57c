"""Batches. Training batches are a pure function of (seed, step), so that a resumed run sees the same images."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from .base import Dataset
from .errors import DataError

_ORDER_STREAM, _FLIP_STREAM = 0, 1


class TrainBatches:
    """Infinite shuffled batches; ``batch(step)`` is a pure function of (seed, step).

    Sample number p = step * batch_size + j is place p mod N of the permutation of epoch floor(p / N). Batches run on
    across the ends of epochs: nothing is dropped, and every epoch visits every image exactly once.

    Args:
        dataset: Images to draw from.
        batch_size: Images a batch, at least 1; it may exceed the size of the dataset.
        seed: Seed of the order and of the flips, at least 0.
        random_flip: Mirror each image left to right with probability 1/2, drawn from (seed, step).

    Raises:
        DataError: If ``batch_size`` or ``seed`` is out of range.
    """

    def __init__(self, dataset: Dataset, *, batch_size: int, seed: int, random_flip: bool = False) -> None:
        _check_batch_size(batch_size)
        if seed < 0:
            raise DataError(f"seed must be at least 0, got {seed}; choose a non-negative seed")
        if random_flip and dataset.stored.ndim != 4:
            raise DataError(f"random_flip mirrors images, but {dataset.name} holds vectors; leave it off")
        self.dataset = dataset
        self.batch_size = batch_size
        self.seed = seed
        self.random_flip = random_flip
        self._permutations: tuple[tuple[int, np.ndarray], ...] = ()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of one step, whichever steps were asked for before.

        Args:
            step: Step number, at least 0.

        Returns:
            The samples as they are stored, uint8 [B, C, H, W] or float64 [B, D], and int64 labels [B].

        Raises:
            DataError: If ``step`` is negative.
        """
        indices = torch.from_numpy(self.indices(step))
        images, labels = self.dataset.stored[indices], self.dataset.labels[indices]
        if self.random_flip:
            flip = torch.from_numpy(self._raw_bits(_FLIP_STREAM, step, self.batch_size) >> np.uint64(63) == 1)
            images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return images, labels

    def indices(self, step: int) -> np.ndarray:
        """Return which images of the dataset make up the batch of one step.

        Args:
            step: Step number, at least 0.

        Returns:
            int64 array [B] of positions in the dataset.

        Raises:
            DataError: If ``step`` is negative.
        """
        if step < 0:
            raise DataError(f"step must be at least 0, got {step}; steps count from 0")
        size, begin = len(self.dataset), step * self.batch_size
        end = begin + self.batch_size
        pieces = [
            self._permutation(epoch)[max(begin - epoch * size, 0) : end - epoch * size]
            for epoch in range(begin // size, (end - 1) // size + 1)
        ]
        return np.concatenate(pieces)

    def _permutation(self, epoch: int) -> np.ndarray:
        for known, permutation in self._permutations:
            if known == epoch:
                return permutation
        bits = self._raw_bits(_ORDER_STREAM, epoch, len(self.dataset))
        permutation = np.argsort(bits, kind="stable").astype(np.int64)
        # Two are kept, because a batch may straddle the end of an epoch.
        self._permutations = (*self._permutations, (epoch, permutation))[-2:]
        return permutation

    def _raw_bits(self, stream: int, index: int, count: int) -> np.ndarray:
        # Raw bits, because NumPy keeps a bit generator's stream through its releases, but not Generator.permutation's.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(stream, index))
        return np.asarray(np.random.PCG64(sequence).random_raw(count), dtype=np.uint64)


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
    _check_batch_size(batch_size)
    if not 0 <= num_images <= len(dataset):
        raise DataError(
            f"num_images must be 0 (everything) .. {len(dataset)}, the size of the {dataset.name} {dataset.split} "
            f"split, got {num_images}; ask for fewer images"
        )
    end = num_images or len(dataset)
    slices = [slice(begin, min(begin + batch_size, end)) for begin in range(0, end, batch_size)]
    return ((dataset.stored[part], dataset.labels[part]) for part in slices)


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise DataError(f"batch_size must be at least 1, got {batch_size}; choose a positive batch size")
