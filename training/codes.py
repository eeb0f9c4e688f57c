"""Codebooks in training: codes that nobody chooses are restarted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from experiment.checkpoints.sharding import split_like, whole
from models.first_stage import VectorQuantizer
from runtime.processes.collectives import Communication


class Codebooks:
    """The codebooks of a network, and of the average of its weights.

    Args:
        pairs: Each codebook, and that of the average.
        communication: The ranks of the job.
    """

    def __init__(self, pairs: Sequence[tuple[VectorQuantizer, VectorQuantizer]], communication: Communication) -> None:
        self._pairs, self._ranks = pairs, communication

    @classmethod
    def of(cls, network: nn.Module, average: nn.Module, communication: Communication) -> Codebooks | None:
        """The codebooks of a network; None of most, which have none."""
        found = [[one for one in m.modules() if isinstance(one, VectorQuantizer)] for m in (network, average)]
        pairs = list(zip(*found, strict=True))
        return cls(pairs, communication) if pairs else None

    def begin_step(self) -> None:
        """Forget what was seen before: of a step that was skipped, say."""
        for quantizer, _ in self._pairs:
            quantizer.forget()

    @torch.no_grad()
    def end_step(self) -> None:
        """Count the step, and restart codes; all ranks must call this.

        The average, too, has a restarted code where it begins anew: a mean of both places would be no code of either.
        """
        for quantizer, of_average in self._pairs:
            codes, vectors = quantizer.end_step(add=self._ranks.add, gather=self._ranks.gather_all)
            of_average.idle.copy_(quantizer.idle)
            if not len(codes):
                continue
            for codebook in (quantizer.codebook, of_average.codebook):
                changed = whole(codebook.detach()).clone()
                changed[codes] = vectors.to(changed.dtype)
                codebook.copy_(split_like(changed, codebook))
