"""The random inputs of a training step, derived from (seed, step): samples, uniform draws and noise."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from data import NOTHING, Beside, DataError, Dataset
from models.condition import PARTS
from runtime.processes.rank_slice import RankSlice
from sde_lib import derive_seed

_ORDER_STREAM, _FLIP_STREAM = 0, 1  # of numpy
_TIME_STREAM, _NOISE_STREAM, NETWORK_STREAM, _MORE_NOISE_STREAM = 0, 1, 2, 3
_DROP_STREAM, _CONDITION_TIME_STREAM, _CONDITION_NOISE_STREAM = 4, 5, 6
_CHUNK = 256  # samples that share a generator of noise: a process makes no more of the others' than the rest of these


@dataclass(frozen=True)
class Batch:
    """One rank's slice of the batch of a step, on the CPU.

    Attributes:
        samples: Samples as they are stored, uint8 [b, C, H, W] or floats [b, ...].
        labels: Their labels, int64 [b].
        uniform: For the times of the global batch, float64 [B]: some time samplers spread them over all of it.
        eps: Standard normal noise of the slice, [b, ...].
        beside: What lies beside the samples; images are flipped as they are.
        spread: Standard deviation of each number of the samples, which ``more_noise`` is for; None for none.
        more_noise: As much again, for losses that want it, or for the spread.
        drop_uniform: For the samples whose condition is left out, float64 [b]; None where none is.
        part_uniform: For those of which a part is, a column for each of ``PARTS``, float64 [b, P]; None where none is.
        condition_uniform: For the times of the noise on condition images, float64 [b]; None where they have none.
        condition_eps: That noise, standard normal, [b, n].
    """

    samples: Shaped[Tensor, "slice *shape"]
    labels: Int[Tensor, " slice"]
    uniform: Float[Tensor, " batch"]
    eps: Float[Tensor, "slice *shape"]
    beside: Beside = NOTHING
    spread: Float[Tensor, "slice *shape"] | None = None
    more_noise: Float[Tensor, "slice *shape"] | None = None
    drop_uniform: Float[Tensor, " slice"] | None = None
    part_uniform: Float[Tensor, "slice parts"] | None = None
    condition_uniform: Float[Tensor, " slice"] | None = None
    condition_eps: Float[Tensor, "slice numbers"] | None = None

    def pinned(self) -> Batch:
        """The same in memory from which a GPU copies while it computes."""
        # the times are computed on the CPU
        given = {field.name: getattr(self, field.name) for field in fields(self)}
        moved = {name: value for name, value in given.items() if isinstance(value, Tensor) and name != "uniform"}
        pinned = {name: value.pin_memory() for name, value in moved.items()}
        return replace(self, beside=self.beside.map(Tensor.pin_memory), **pinned)


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
        if batch_size < 1:
            raise DataError(f"batch_size must be at least 1, got {batch_size}; choose a positive batch size")
        if seed < 0:
            raise DataError(f"seed must be at least 0, got {seed}; choose a non-negative seed")
        if random_flip and dataset.samples_are != "images":
            raise DataError(f"random_flip mirrors images, but {dataset.name} holds {dataset.samples_are}; leave it off")
        self.batch_size, self.seed, self.random_flip = batch_size, seed, random_flip
        self._stored, self._labels, self._size = dataset.stored, dataset.labels, len(dataset)
        self._beside = dataset.beside
        # Two are kept, because a batch may straddle the end of an epoch.
        self._permutation = lru_cache(maxsize=2)(self._draw_permutation)

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
        images, labels = self._stored[indices], self._labels[indices]
        return self._flipped(step, images) if self.random_flip else images, labels

    def beside(self, step: int) -> Beside:
        """Values, images and texts beside the samples of ``batch``; images are mirrored where these are."""
        beside = self._beside[torch.from_numpy(self.indices(step))]
        if beside.paired is None or not self.random_flip:
            return beside
        return replace(beside, paired=self._flipped(step, beside.paired))

    def _flipped(self, step: int, images: Tensor) -> Tensor:
        flip = torch.from_numpy(self._raw_bits(_FLIP_STREAM, step, self.batch_size) >> np.uint64(63) == 1)
        return torch.where(flip.view(-1, *[1] * (images.ndim - 1)), images.flip(-1), images)

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
        size, begin = self._size, step * self.batch_size
        end = begin + self.batch_size
        pieces = [
            self._permutation(epoch)[max(begin - epoch * size, 0) : end - epoch * size]
            for epoch in range(begin // size, (end - 1) // size + 1)
        ]
        return np.concatenate(pieces)

    def _draw_permutation(self, epoch: int) -> np.ndarray:
        bits = self._raw_bits(_ORDER_STREAM, epoch, self._size)
        return np.argsort(bits, kind="stable").astype(np.int64)

    def _raw_bits(self, stream: int, index: int, count: int) -> np.ndarray:
        # Raw bits, because NumPy keeps a bit generator's stream through its releases, but not Generator.permutation's.
        sequence = np.random.SeedSequence(self.seed, spawn_key=(stream, index))
        return np.asarray(np.random.PCG64(sequence).random_raw(count), dtype=np.uint64)


class Batches:
    """The batches of a training; ``at(step)`` is a function of (seed, step), of which each rank takes its slice.

    Args:
        dataset: The samples.
        rank_slice: The size of the global batch, and this rank's slice of it.
        seed: Seed of the run.
        random_flip: Mirror images left to right with probability 1/2.
        more_noise: Draw noise a second time, for losses that want it.
        drops: Draw which samples' conditions are left out.
        part_drops: Draw of which samples a part is.
        num_condition_noise: Numbers of a sample's condition images that get noise; 0 for none.
        ahead: Make the next batch in a thread of its own, in pinned memory where there is a GPU. That pays where a GPU
            computes; on a CPU it takes from the network what it gives.
    """

    def __init__(
        self,
        dataset: Dataset,
        rank_slice: RankSlice,
        *,
        seed: int,
        random_flip: bool = False,
        more_noise: bool = False,
        drops: bool = False,
        part_drops: bool = False,
        num_condition_noise: int = 0,
        ahead: bool = False,
    ) -> None:
        self._spread, self._has_beside = dataset.spread, not dataset.beside.empty
        self._samples = TrainBatches(dataset, batch_size=rank_slice.batch_size, seed=seed, random_flip=random_flip)
        self._slice, self._seed, self._more_noise = rank_slice, seed, more_noise or dataset.spread is not None
        self._drops, self._part_drops, self._num_condition_noise = drops, part_drops, num_condition_noise
        self._ahead = ahead
        self._pool: ThreadPoolExecutor | None = None
        self._pin = ahead and torch.cuda.is_available()
        self._next: tuple[int, Future[Batch]] | None = None

    def at(self, step: int) -> Batch:
        """The batch of a step, whichever steps were asked for before."""
        if not self._ahead:
            return self._make(step)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        batch = self._next[1].result() if self._next is not None and self._next[0] == step else self._make(step)
        self._next = (step + 1, self._pool.submit(self._make, step + 1))
        return batch

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = self._next = None

    def _make(self, step: int) -> Batch:
        own = self._slice.samples
        samples, labels = self._samples.batch(step)
        numbers, index = torch.Size([self._num_condition_noise]), torch.from_numpy(self._samples.indices(step)[own])
        generator = torch.Generator().manual_seed(derive_seed(self._seed, step, _TIME_STREAM))
        uniform = torch.rand(self._slice.batch_size, generator=generator, dtype=torch.float64)
        batch = Batch(
            samples[own],
            labels[own],
            uniform,
            self._noise(step, _NOISE_STREAM, samples.shape[1:]),
            beside=self._samples.beside(step)[own] if self._has_beside else NOTHING,
            spread=None if self._spread is None else self._spread[index],
            more_noise=self._noise(step, _MORE_NOISE_STREAM, samples.shape[1:]) if self._more_noise else None,
            drop_uniform=self._uniform(step, _DROP_STREAM)[own] if self._drops else None,
            part_uniform=self._of_parts(step)[own] if self._part_drops else None,
            condition_uniform=self._uniform(step, _CONDITION_TIME_STREAM)[own] if numbers[0] else None,
            condition_eps=self._noise(step, _CONDITION_NOISE_STREAM, numbers) if numbers[0] else None,
        )
        return batch.pinned() if self._pin else batch

    def _of_parts(self, step: int) -> Tensor:
        """Uniform draws for each of ``PARTS``, whichever are left out, float64 [B, P]."""
        return torch.stack([self._uniform(step, _DROP_STREAM, k) for k in range(1, 1 + len(PARTS))], dim=1)

    def _uniform(self, step: int, *stream: int) -> Tensor:
        """Uniform draws in [0, 1) for the global batch, float64 [B]."""
        generator = torch.Generator().manual_seed(derive_seed(self._seed, step, *stream))
        return torch.rand(self._slice.batch_size, generator=generator, dtype=torch.float64)

    def _noise(self, step: int, stream: int, shape: torch.Size) -> Tensor:
        """Standard normal noise of the rank's slice, chunk by chunk."""
        own, pieces = self._slice.samples, []
        for chunk in range(own.start // _CHUNK, (own.stop - 1) // _CHUNK + 1):
            first = chunk * _CHUNK
            size = min(_CHUNK, self._slice.batch_size - first)
            keys = (stream, chunk) if chunk else (stream,)
            generator = torch.Generator().manual_seed(derive_seed(self._seed, step, *keys))
            noise = torch.randn(size, *shape, generator=generator)
            pieces.append(noise[max(own.start - first, 0) : own.stop - first])
        return torch.cat(pieces)
