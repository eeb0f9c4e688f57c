"""Checks of networks' arguments."""

import torch
from torch import Tensor


def check_input(x: Tensor, expected: tuple[int, ...], weight: Tensor) -> None:
    """Refuse a batch that a network cannot take, in one line.

    Args:
        x: The batch, [B, ...].
        expected: Shape of one sample.
        weight: A parameter of the network, for its dtype.

    Raises:
        ValueError: The shape of a sample, or outside autocast the dtype, is not the network's.
    """
    if x.ndim != len(expected) + 1 or tuple(x.shape[1:]) != expected:
        shape = ", ".join(str(size) for size in expected)
        raise ValueError(f"x must have shape [B, {shape}], got {list(x.shape)}; resize x or rebuild the network")
    if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
        raise ValueError(f"x must be {weight.dtype} like the network, got {x.dtype}; pass x.to({weight.dtype})")
