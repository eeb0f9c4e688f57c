"""Samples of each image, several of each: drawn in batches that are dealt to processes, and kept as they come."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from evaluation.kept_batches import PartialResults
from evaluation.measurement import Values
from evaluation.over_ranks import deal
from runtime.messages import say
from runtime.processes.ranks import Ranks
from runtime.terminal import ProgressBar
from samplers import Hook, StepState

from ..sample import share_plan

Numbers = list[tuple[int, int]]  # of image and sample, a pair each


def plan_kept(kept: PartialResults, num_batches: int, ranks: Ranks) -> list[list[str]]:
    """Rank 0's list of the batches that are not kept from before, for all processes; it says how many are."""

    def plan() -> list[list[str]]:
        known, notes = kept.good(num_batches)
        for note in notes:
            say(note)
        if known:
            say(f"goes on: {len(known)} of {num_batches} batches were drawn before")
        return [[str(k)] for k in range(num_batches) if k not in known]

    return share_plan(ranks, kept.digest, plan) or []


@dataclass(frozen=True)
class Ensembles:
    """K samples of each of N images, cut into batches.

    Attributes:
        num_images: N.
        per_image: K.
        batch_size: Samples drawn at once.
        kept: The batches.
    """

    num_images: int
    per_image: int
    batch_size: int
    kept: PartialResults

    @property
    def batches(self) -> list[Numbers]:
        """Pairs of image and sample, batch by batch."""
        pairs = [(k, j) for k in range(self.num_images) for j in range(self.per_image)]
        return [pairs[first : first + self.batch_size] for first in range(0, len(pairs), self.batch_size)]

    def said(self) -> str:
        """A line for who stops it."""
        kept, count = self.kept.count(), len(self.batches)
        return f"stopped with {kept} of {count} batches kept; the same command goes on from there"

    def draw(self, mode: str, draw: Callable[[Numbers, Hook], Values], ranks: Ranks) -> None:
        """Draw what is not kept from before, each batch on its process.

        Args:
            mode: The mode, for the progress bar.
            draw: Draws the samples of some pairs, with a hook for the sampler.
            ranks: The processes.
        """
        batches = self.batches
        todo = plan_kept(self.kept, len(batches), ranks)
        with ProgressBar(unit="step", desc=mode, disable=not ranks.first) as bar:

            def progress(state: StepState) -> None:
                bar.total = len(todo[ranks.rank :: ranks.world]) * state.num_steps
                bar.update()

            def drawn(unit: str) -> bytes:
                return self.kept.encode(int(unit), draw(batches[int(unit)], progress))

            deal(ranks, todo, drawn, lambda unit, data: self.kept.keep(int(unit), data))

    def read(self) -> dict[str, np.ndarray]:
        """All that was drawn, [N, K, ...] by name; "nfe", a number, is the largest of all batches."""
        batches = [self.kept.read(k) for k in range(len(self.batches))]
        found = {"nfe": np.asarray(max(int(one["nfe"]) for one in batches))}
        for name in batches[0].keys() - {"nfe"}:
            rows = np.concatenate([one[name] for one in batches])
            found[name] = rows.reshape(self.num_images, self.per_image, *rows.shape[1:])
        return found
