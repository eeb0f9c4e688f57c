"""Codebooks in training: codes that nobody chooses are restarted."""

from __future__ import annotations

import torch
from torch import nn

from experiment.checkpoints.sharding import split_like, whole
from models.first_stage import VectorQuantizer
from runtime.processes.collectives import Communication


class Codebooks:
    """The codebooks of a network, and of the average of its weights.

    Args:
        network: The network; most have none.
        average: The average.
        communication: The ranks of the job.
    """

    def __init__(self, network: nn.Module, average: nn.Module, communication: Communication) -> None:
        found = [[one for one in m.modules() if isinstance(one, VectorQuantizer)] for m in (network, average)]
        self._pairs = list(zip(*found, strict=True))
        self._ranks = communication

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
