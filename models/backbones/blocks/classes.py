"""Class labels: their look-up in a table, and what is said of those that a network does not take."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def _labels(num_classes: int, null_condition: bool) -> str:
    return f"0 .. {num_classes - 1}" + (", or -1 for no class" if null_condition else "")


def look_up_classes(
    table: Tensor | None, cond: Tensor | None, batch_size: int, *, null_condition: bool
) -> Tensor | None:
    """Look up what a table says of each sample's class; zeros for -1, no class, where the network is trained with it.

    Args:
        table: The features of each class, [num_classes, F], or None for an unconditional network.
        cond: Class labels, int64 [B], or None.
        batch_size: ``B``, that of the data.
        null_condition: Whether -1 is a label too.

    Returns:
        [B, F], or None for an unconditional network.

    Raises:
        ValueError: A shape or type is wrong, or labels are missing or unexpected; on the CPU also if one is out of
            range: elsewhere, and compiled, the look-up itself fails.
    """
    if table is None:
        if cond is not None:
            raise ValueError("cond must be None: the network has no classes; build it with num_classes=...")
        return None
    if cond is None:
        raise ValueError(
            f"cond must be int64 labels of shape [{batch_size}], got None; pass one a sample, "
            f"{_labels(len(table), null_condition)}"
        )
    if cond.shape != (batch_size,):
        fix = "cond.flatten()" if cond.numel() == batch_size else "one cond for each sample"
        raise ValueError(f"cond must have shape [{batch_size}], got {list(cond.shape)}; pass {fix}")
    if cond.dtype != torch.int64:
        raise ValueError(f"cond must be int64, got {cond.dtype}; pass cond.long()")
    known = torch.where(cond == -1, 0, cond) if null_condition else cond
    # the look-up refuses what is out of range, so nothing has to be read back from a GPU to check
    try:
        features = F.embedding(known, table)
    except IndexError:
        raise ValueError(_message(cond, len(table), null_condition)) from None
    return features * (cond != -1).to(features.dtype).unsqueeze(-1) if null_condition else features


def _message(cond: Tensor, num_classes: int, null_condition: bool) -> str:
    low, high = int(cond.min()), int(cond.max())
    expected = f"cond must be in {_labels(num_classes, null_condition)}"
    if low == -1 and high < num_classes:
        return (
            f"{expected}, got -1: this network never saw samples without a class, as it was not trained with its class "
            "dropped now and then (null_condition); pass a class"
        )
    return f"{expected}, got {low} .. {high}; build the network with more num_classes"
