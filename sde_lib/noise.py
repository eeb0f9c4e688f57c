"""Random numbers with one stream a sample, so that image k of a run is the same image at any batch size."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(*keys: int) -> int:
    """A 63-bit seed that depends on every key, from numpy's SeedSequence.

    Args:
        *keys: Non-negative integers, such as (run seed, sample index).

    Returns:
        An integer in [0, 2^63).
    """
    return int(np.random.SeedSequence(keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


class NoiseStreams:
    """One independent random stream for each sample of a batch.

    Stream k depends on (seed, index k) alone: not on the batch it is drawn in, nor on the device the result is used on
    (draws are made on the CPU in float32 and then moved).

    Args:
        seed: Seed of the run.
        indices: Number of each sample within the run, one a batch item.
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed = seed
        self.indices = list(indices)
        self._generators = [torch.Generator().manual_seed(derive_seed(seed, index)) for index in self.indices]

    @classmethod
    def fresh(cls, batch_size: int) -> NoiseStreams:
        """Streams seeded from PyTorch's global generator, so that ``torch.manual_seed`` repeats them."""
        return cls(int(torch.randint(2**62, ()).item()), range(batch_size))

    def __len__(self) -> int:
        """The number of streams, which is the batch size."""
        return len(self._generators)

    def _buffer(self, sample_shape: Sequence[int]) -> Tensor:
        return torch.empty(len(self), *sample_shape, dtype=torch.float32)

    def normal(self, sample_shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        """Standard normal draws, shape [B, *sample_shape], float32 on the CPU."""
        out = self._buffer(sample_shape)
        for row, generator in zip(out, self._generators, strict=True):
            row.normal_(generator=generator)
        return out

    def normal_like(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """Standard normal draws in the shape and dtype and on the device of ``x``.

        Raises:
            ValueError: If the batch size of ``x`` is not the number of streams.
        """
        if x.shape[0] != len(self):
            raise ValueError(f"noise has {len(self)} streams, got a batch of {x.shape[0]}; make one stream a sample")
        return self.normal(x.shape[1:]).to(device=x.device, dtype=x.dtype)

    def uniform(self, sample_shape: Sequence[int] = ()) -> Float[Tensor, "batch *shape"]:
        """Uniform draws in [0, 1), shape [B, *sample_shape], float32 on the CPU."""
        out = self._buffer(sample_shape)
        for k, generator in enumerate(self._generators):
            out[k] = torch.rand(tuple(sample_shape), generator=generator)
        return out
