"""How the learning rate and the decay of the average begin."""

from __future__ import annotations

import math


def learning_rate_factor(step: int, warmup_steps: int) -> float:
    """min(1, (step + 1) / warmup_steps): the rate rises linearly and then stays.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Length of the warm-up; 0 for none.
    """
    return 1.0 if warmup_steps <= 0 else min(1.0, (step + 1) / warmup_steps)


def ema_decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)), so that the average of a short run is not its beginning.

    Args:
        num_updates: Number n of updates so far.
        decay: The decay in the long run, in [0, 1).
    """
    assert math.isfinite(decay)
    return min(decay, (1 + num_updates) / (10 + num_updates))
