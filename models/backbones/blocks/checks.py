"""Checks of networks' arguments."""

from collections.abc import Sequence

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


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    """Refuse a word that is none of the choices.

    Raises:
        ValueError: It is another.
    """
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def check_positive(**numbers: int) -> None:
    """Refuse numbers below 1.

    Raises:
        ValueError: There is such a number; the message names it.
    """
    for name, value in numbers.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}; raise it")
