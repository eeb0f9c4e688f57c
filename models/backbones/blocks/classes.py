"""Class labels: which a network takes, what is said of others, and their rows of a table."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _labels(num_classes: int, null_class: bool) -> str:
    return f"0 .. {num_classes - 1}" + (", or -1 for no class" if null_class else "")


def check_classes(cond: Tensor | None, batch_size: int, *, num_classes: int | None, null_class: bool) -> None:
    """Refuse labels of another shape or type than a network takes; ``look_up_classes`` refuses their values.

    Args:
        cond: Class labels, int64 [B], or None.
        batch_size: ``B``, that of the data.
        num_classes: Number of classes, or None for an unconditional network.
        null_class: Whether -1, no class, is a label too.

    Raises:
        ValueError: A shape or type is wrong, or labels are missing or unexpected.
    """
    if num_classes is None:
        if cond is not None:
            raise ValueError("cond must be None: the network has no classes; build it with num_classes=...")
        return
    if cond is None:
        raise ValueError(
            f"cond must be int64 labels of shape [{batch_size}], got None; pass one a sample, "
            f"{_labels(num_classes, null_class)}"
        )
    if cond.shape != (batch_size,):
        fix = "cond.flatten()" if cond.numel() == batch_size else "one cond for each sample"
        raise ValueError(f"cond must have shape [{batch_size}], got {list(cond.shape)}; pass {fix}")
    if cond.dtype != torch.int64:
        raise ValueError(f"cond must be int64, got {cond.dtype}; pass cond.long()")


def look_up_classes(table: Tensor, cond: Tensor, *, null_class: bool) -> Tensor:
    """The rows of a table by class; zeros for -1, no class, where the network is trained with it.

    Args:
        table: A row a class, [num_classes, F].
        cond: Class labels, int64 [B].
        null_class: Whether -1 is a label too.

    Returns:
        [B, F].

    Raises:
        ValueError: On the CPU, if a label is out of range; elsewhere, and compiled, the look-up itself fails.
    """
    known = torch.where(cond == -1, 0, cond) if null_class else cond
    # the look-up refuses what is out of range, so nothing has to be read back from a GPU to check
    try:
        rows = F.embedding(known, table)
    except IndexError:
        raise ValueError(_message(cond, len(table), null_class)) from None
    return rows * (cond != -1).to(rows.dtype).unsqueeze(-1) if null_class else rows


def _message(cond: Tensor, num_classes: int, null_class: bool) -> str:
    low, high = int(cond.min()), int(cond.max())
    expected = f"cond must be in {_labels(num_classes, null_class)}"
    if low == -1 and high < num_classes:
        return (
            f"{expected}, got -1: this network never saw samples without a class, as it was not trained with its class "
            "dropped now and then (null_class); pass a class"
        )
    return f"{expected}, got {low} .. {high}; build the network with more num_classes"
