"""Checks of every estimate: batches that do not fit together, model outputs that are not finite."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, Condition
from sde_lib import SDE, NoiseStreams


def check_batch(x0: Float[Tensor, "batch *shape"], cond: Cond | None, noise: NoiseStreams | None) -> NoiseStreams:
    """The streams of a batch, fresh ones for None, once all have been found to belong together.

    Args:
        x0: Data, [B, ...].
        cond: Its condition, [B, ...], or None.
        noise: One random stream a sample, or None.

    Raises:
        ValueError: If x0 is no batch of floating-point numbers, or cond or noise are not as many.
    """
    if not isinstance(x0, Tensor) or not x0.is_floating_point():
        kind = x0.dtype if isinstance(x0, Tensor) else type(x0).__name__
        # noise drawn in the dtype of integers would be rounded to integers
        raise ValueError(
            f"x0 must be a tensor of floating-point numbers, got {kind}; pass level k as 2 k / (num_levels - 1) - 1"
        )
    if x0.ndim < 2 or not x0.numel():
        raise ValueError(
            f"x0 must have shape [B, ...] and not be empty, got {list(x0.shape)}; pass one row a sample, one at least"
        )
    batch_size = len(x0)
    has_rows = isinstance(cond, Condition) or (isinstance(cond, Tensor) and cond.ndim > 0)
    if cond is not None and not (has_rows and len(cond) == batch_size):
        kind = list(cond.shape) if isinstance(cond, Tensor) else type(cond).__name__
        kind = f"a condition of {len(cond)}" if isinstance(cond, Condition) else kind
        raise ValueError(f"cond must have {batch_size} rows, one a sample of x0, got {kind}; expand or cut it")
    noise = NoiseStreams.fresh(batch_size) if noise is None else noise
    if len(noise) != batch_size:
        raise ValueError(f"noise has {len(noise)} streams, got a batch of {batch_size}; make one stream a sample")
    return noise


def check_finite(nats: Float[Tensor, " batch"], t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """The nats of each sample, if all are numbers.

    Args:
        nats: What was made of the model's answers at t, [B].
        t: Their times, [B].

    Raises:
        FloatingPointError: If one is not finite; the message says at which t.
    """
    wrong = ~torch.isfinite(nats)
    if bool(wrong.any()):
        raise FloatingPointError(
            f"the model's answer is not finite at t = {float(t[wrong][0]):.6g}; look at its output there"
        )
    return nats


def noisy_part(grid: Float[Tensor, " points"], sde: SDE) -> Float[Tensor, " noisy_points"]:
    """The falling times of a grid at which noise is left, t = 0 of most SDEs being none.

    Args:
        grid: Falling times.
        sde: The SDE.

    Raises:
        ValueError: If no signal is left at the first, where the log-SNR is -infinity.
    """
    log_snr = sde.log_snr(grid)
    if bool(log_snr[0] == -torch.inf):
        first = float(grid[0])
        fix = f"begin at t_max = {sde.t_max:.6g}"
        if first <= sde.t_max:
            fix = f"set t_max of {type(sde).__name__} lower, such as {0.999 * first:.6g}"
        raise ValueError(f"the grid must begin where signal is left, got t = {first:.6g}, where alpha is 0; {fix}")
    return grid[torch.isfinite(log_snr)]
