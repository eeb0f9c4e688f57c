"""The slice of every batch that one rank of a job computes, and its micro-batches."""

from __future__ import annotations

import itertools


class RankSlice:
    """One rank's slice of every global batch; alone, all of it.

    A global batch of B samples is cut into ``world * accumulation_steps`` micro-batches of nearly equal size. Rank r
    does micro-batches r A .. (r + 1) A - 1, one after the other. The gradient of a micro-batch depends on nothing else:
    two ranks compute what one does with two accumulation steps, up to the order of sums.

    Args:
        batch_size: B, of all processes together.
        rank: Number of this process.
        world: Number of processes.
        accumulation_steps: Micro-batches A a rank.

    Raises:
        ValueError: If there are more micro-batches than samples.

    Attributes:
        samples: The samples of this rank, as places in the global batch.
        micro_batches: Its micro-batches, as places in the global batch.
    """

    def __init__(self, batch_size: int, *, rank: int = 0, world: int = 1, accumulation_steps: int = 1) -> None:
        if accumulation_steps < 1:
            raise ValueError(f"accumulation_steps must be at least 1, got {accumulation_steps}; use 1 for none")
        num_micro_batches = world * accumulation_steps
        if num_micro_batches > batch_size:
            raise ValueError(
                f"a batch of {batch_size} cannot be cut into {num_micro_batches} micro-batches, one for each of "
                f"{world} processes and {accumulation_steps} accumulation steps; raise training.batch_size, the size "
                "over all of them"
            )
        self.batch_size, self.rank, self.world, self.accumulation_steps = batch_size, rank, world, accumulation_steps
        self._ends = [batch_size * number // num_micro_batches for number in range(num_micro_batches + 1)]
        own = self._ends[rank * accumulation_steps : (rank + 1) * accumulation_steps + 1]
        self.samples = slice(own[0], own[-1])
        self.micro_batches = [slice(begin, end) for begin, end in itertools.pairwise(own)]

    def micro_batch_sizes(self) -> list[int]:
        """Number of samples of each micro-batch, of all ranks."""
        return [end - begin for begin, end in itertools.pairwise(self._ends)]

    def sizes(self) -> list[int]:
        """Number of samples of each rank."""
        ends = self._ends[:: self.accumulation_steps]
        return [end - begin for begin, end in itertools.pairwise(ends)]
