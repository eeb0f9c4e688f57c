"""Random numbers with one stream a sample, so that image k of a run is the same image at any batch size."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from runtime.options import ShowsOptions


def _seed_sequence(*keys: int) -> np.random.SeedSequence:
    """Each key as two words and their number first: SeedSequence alone takes (1,) and (1, 0) as the same."""
    try:
        # a bool is an int to Python, and is one to nobody who counts
        numbers = [-1 if isinstance(key, bool) else operator.index(key) for key in keys]
    except TypeError:
        numbers = [-1]
    if not all(0 <= number < 2**64 for number in numbers):
        raise ValueError(f"seeds and indices must lie in [0, 2^64), got {keys}; pass non-negative integers")
    words = [word for number in numbers for word in (number & 0xFFFFFFFF, number >> 32)]
    return np.random.SeedSequence([len(keys), *words])


def derive_seed(*keys: int) -> int:
    """A 63-bit seed that depends on every key, from numpy's SeedSequence.

    Args:
        *keys: Non-negative integers, such as (run seed, sample index).

    Returns:
        An integer in [0, 2^63).

    Raises:
        ValueError: If a key is outside [0, 2^64).
    """
    return int(_seed_sequence(*keys).generate_state(1, np.uint64)[0] >> np.uint64(1))


# A generator's state as PyTorch saves it: its seed, two counters, then the Mersenne twister's 624 words, 8 bytes each.
_NUM_WORDS, _WORDS_AT = 624, 24


def _generator(seed: int, index: int) -> torch.Generator:
    """A generator on the CPU whose whole state comes from a SeedSequence.

    PyTorch's own seeding keeps 32 bits: among 50000 samples two would often be the same.
    """
    generator = torch.Generator()
    state = generator.get_state()
    words = _seed_sequence(seed, index).generate_state(_NUM_WORDS).astype(np.uint64)
    words[0] |= np.uint64(0x80000000)  # the twister must not be all zeros, and uses the first word's top bit alone
    state[_WORDS_AT : _WORDS_AT + 8 * _NUM_WORDS] = torch.from_numpy(words.view(np.uint8))
    return generator.set_state(state)


class NoiseStreams(ShowsOptions):
    """One independent random stream for each sample of a batch.

    Stream k depends on (seed, index k) alone: not on the batch it is drawn in, nor on the device the result is used on
    (draws are made on the CPU in float32 and then moved).

    Args:
        seed: Seed of the run.
        indices: Number of each sample within the run, one a batch item.

    Raises:
        ValueError: If the seed or an index is outside [0, 2^64).
    """

    def __init__(self, seed: int, indices: Sequence[int]) -> None:
        self.seed = seed
        self.indices = list(indices)
        self._generators = [_generator(seed, k) for k in self.indices]

    @classmethod
    def fresh(cls, batch_size: int) -> NoiseStreams:
        """Streams seeded from PyTorch's global generator, so that ``torch.manual_seed`` repeats them."""
        return cls(int(torch.randint(2**62, ()).item()), range(batch_size))

    def __len__(self) -> int:
        """The number of streams, which is the batch size."""
        return len(self._generators)

    def normal(self, sample_shape: Sequence[int]) -> Float[Tensor, "batch *shape"]:
        """Standard normal draws, shape [B, *sample_shape], float32 on the CPU."""
        out = torch.empty(len(self), *sample_shape, dtype=torch.float32)
        self.fill_normal(out.unbind())
        return out

    def fill_normal(self, rows: Sequence[Float[Tensor, "*shape"]]) -> None:
        """Overwrite one tensor a stream, float32 on the CPU, with standard normal draws."""
        for row, generator in zip(rows, self._generators, strict=True):
            row.normal_(generator=generator)

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
        out = torch.empty(len(self), *sample_shape, dtype=torch.float32)
        for row, generator in zip(out.unbind(), self._generators, strict=True):
            row.uniform_(generator=generator)
        return out
