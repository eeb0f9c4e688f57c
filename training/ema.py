"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy

import torch

from models import NetworkScoreModel

from .schedules import ema_decay_at


class ExponentialMovingAverage:
    """avg <- d avg + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after n updates.

    torch.optim.swa_utils.AveragedModel fixes the decay at construction, and the warm-up of d is what makes short runs
    usable, hence these few lines.

    Args:
        model: The model whose weights are averaged; a copy of it holds the average.
        decay: The decay in the long run, in [0, 1).
    """

    def __init__(self, model: NetworkScoreModel, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: NetworkScoreModel) -> None:
        """Take in the weights of ``model``; buffers are copied."""
        decay = ema_decay_at(self.num_updates, self.decay)
        for ours, theirs in zip(self.model.parameters(), model.parameters(), strict=True):
            ours.lerp_(theirs, 1 - decay)
        for ours, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            ours.copy_(theirs)
        self.num_updates += 1
