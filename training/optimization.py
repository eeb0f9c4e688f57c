"""Learning-rate schedule, decay of the moving average, and gradient clipping."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from runtime.processes.collectives import is_sharded


def learning_rate_factor(step: int, warmup_steps: int, *, decay_steps: int = 0) -> float:
    """min(1, (step + 1) / warmup_steps), times (1 + cos(pi step / decay_steps)) / 2 if there is a decay.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Steps over which the rate rises linearly; 0 for none.
        decay_steps: Step at which the rate has fallen to 0 along half a cosine (Loshchilov & Hutter 2017, Eq. 5); 0
            keeps it.
    """
    rise = 1.0 if warmup_steps <= 0 else min(1.0, (step + 1) / warmup_steps)
    if decay_steps <= 0:
        return rise
    return rise * 0.5 * (1 + math.cos(math.pi * min(step / decay_steps, 1.0)))


def ema_decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)), so that the average of a short run is not its beginning.

    Args:
        num_updates: Number n of updates so far.
        decay: The decay in the long run, in [0, 1).
    """
    assert math.isfinite(decay)
    return min(decay, (1 + num_updates) / (10 + num_updates))


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients to a norm of at most ``largest``; those of sharded parameters count with their other shards.

    Returns:
        The norm before.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [is_sharded(parameter) for parameter in trained]
    # the two kinds cannot be in one call
    groups = [[p for p, one in zip(trained, sharded, strict=True) if one == kind] for kind in (True, False)]
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups if group]
    norms = [norm.full_tensor() if is_sharded(norm) else norm for norm in norms]
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([one.double() for one in norms]))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, largest, norm)
    return norm
