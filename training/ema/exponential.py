"""The exponential moving average of a model's weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.swa_utils import get_ema_multi_avg_fn

from models import NetworkModel
from runtime.processes.collectives import is_sharded

from ..optimization import ema_decay_at


@torch.no_grad()
def average_into(averages: Sequence[Tensor], values: Sequence[Tensor], decay: float) -> None:
    """averages <- decay averages + (1 - decay) values, in place and in as few calls as can be."""
    # what is learned beside a sharded network is not sharded, and the two kinds cannot be in one call
    for kind in (True, False):
        ours = [mine for mine in averages if is_sharded(mine) == kind]
        theirs = [value for value in values if is_sharded(value) == kind]
        if ours:
            get_ema_multi_avg_fn(decay)(ours, theirs, torch.tensor(0))


class ExponentialMovingAverage:
    """avg <- d avg + (1 - d) weights, with d = min(decay, (1 + n) / (10 + n)) after n updates.

    torch.optim.swa_utils.AveragedModel copies the weights at its first update instead of averaging, and cannot take
    sharded and unsharded weights in one call, hence these few lines.

    Args:
        model: The model whose weights are averaged; a copy of it holds the average.
        decay: The decay in the long run, in [0, 1).
    """

    def __init__(self, model: NetworkModel, decay: float) -> None:
        self.decay = decay
        self.num_updates = 0
        self.model = copy.deepcopy(model).eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, model: NetworkModel) -> None:
        """Take in the weights of ``model``; buffers are copied."""
        decay = ema_decay_at(self.num_updates, self.decay)
        average_into(list(self.model.parameters()), list(model.parameters()), decay)
        for buffer, current in zip(self.model.buffers(), model.buffers(), strict=True):
            buffer.copy_(current)
        self.num_updates += 1
