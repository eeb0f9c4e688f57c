"""The random inputs of a training step, derived from (seed, step): images, uniform draws and noise."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from data import TrainBatches
from runtime.processes.collectives import Share
from sde_lib import derive_seed

_TIME_STREAM, _NOISE_STREAM, NETWORK_STREAM, _MORE_NOISE_STREAM = 0, 1, 2, 3
_CHUNK = 256  # samples that share a generator of noise: a process makes no more of the others' than the rest of these


@dataclass(frozen=True)
class Draw:
    """The random part of a step, on the CPU.

    Attributes:
        images: This process's samples as they are stored, uint8 [b, C, H, W] or float64 [b, D].
        labels: Theirs, int64 [b].
        uniform: For the times of the whole global batch, float64 [B]: some losses spread times over all of it.
        eps: Standard normal noise of this process's samples, [b, C, H, W].
        more_noise: As much again, for losses that want it.
    """

    images: Shaped[Tensor, "part *shape"]
    labels: Int[Tensor, " part"]
    uniform: Float[Tensor, " batch"]
    eps: Float[Tensor, "part channels height width"]
    more_noise: Float[Tensor, "part channels height width"] | None = None

    def pinned(self) -> Draw:
        """The same in memory from which a GPU copies while it computes."""
        more = None if self.more_noise is None else self.more_noise.pin_memory()
        return Draw(self.images.pin_memory(), self.labels.pin_memory(), self.uniform, self.eps.pin_memory(), more)


def generator_of(seed: int, step: int, *stream: int) -> torch.Generator:
    """The generator of a stream of a step."""
    return torch.Generator().manual_seed(derive_seed(seed, step, *stream))


def make_draw(batches: TrainBatches, seed: int, share: Share, step: int, *, more_noise: bool = False) -> Draw:
    """The draw of a step: a function of (seed, step), of which each process takes its samples.

    Args:
        batches: Where images come from.
        seed: Seed of the run.
        share: Which samples are this process's.
        step: Number of the step.
        more_noise: Whether the loss wants a second draw of noise.
    """
    own = share.all
    images, labels = batches.batch(step)
    uniform = torch.rand(share.batch_size, generator=generator_of(seed, step, _TIME_STREAM), dtype=torch.float64)
    shape = images.shape[1:]
    eps = _noise(seed, step, _NOISE_STREAM, share, shape)
    more = _noise(seed, step, _MORE_NOISE_STREAM, share, shape) if more_noise else None
    return Draw(images[own], labels[own], uniform, eps, more)


def _noise(seed: int, step: int, stream: int, share: Share, shape: torch.Size) -> Tensor:
    """Standard normal noise of a process's samples, chunk by chunk."""
    own, pieces = share.all, []
    for chunk in range(own.start // _CHUNK, (own.stop - 1) // _CHUNK + 1):
        first = chunk * _CHUNK
        size = min(_CHUNK, share.batch_size - first)
        keys = (stream, chunk) if chunk else (stream,)
        noise = torch.randn(size, *shape, generator=generator_of(seed, step, *keys))
        pieces.append(noise[max(own.start - first, 0) : own.stop - first])
    return torch.cat(pieces)


class Draws:
    """The draws of steps, one after the other; each may be made while the step before it is computed.

    Args:
        make: From the number of a step to its draw.
        ahead: Make the next one in a thread of its own. That pays where a GPU computes; on a CPU it takes from the
            network what it gives.
        pin: Pin it, for copies to a GPU beside its work.
    """

    def __init__(self, make: Callable[[int], Draw], *, ahead: bool = False, pin: bool = False) -> None:
        self._make, self._pin = make, pin
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="draws") if ahead else None
        self._next: tuple[int, Future[Draw]] | None = None

    def take(self, step: int) -> Draw:
        """The draw of a step, whichever was asked for before."""
        if self._pool is None:
            return self._ready(step)
        draw = self._next[1].result() if self._next is not None and self._next[0] == step else self._ready(step)
        self._next = (step + 1, self._pool.submit(self._ready, step + 1))
        return draw

    def _ready(self, step: int) -> Draw:
        draw = self._make(step)
        return draw.pinned() if self._pin else draw

    def close(self) -> None:
        """End the thread."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
