"""Tensors that are split over processes, and what one process read for all of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from runtime.processes.collectives import is_sharded

from .store import Checkpoint


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from its parts, on every process; all of them must ask. Others stay as they are."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def split_like(value: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, which every process has, split and laid out in memory as ``target`` is.

    Fused optimizers go through memory without a look at strides: a moment laid out otherwise than its parameter would
    be another parameter's.
    """
    if not is_sharded(target):
        return torch.empty_like(target, dtype=value.dtype).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)


def from_first(checkpoint: Checkpoint | None) -> Checkpoint | None:
    """Send rank 0's checkpoint to every process, without its notes, which are printed once."""
    names: list[tuple[str, list[int], torch.dtype]] = []
    head: list[Any] = [None]
    if dist.get_rank() == 0 and checkpoint is not None:
        names = [(name, list(tensor.shape), tensor.dtype) for name, tensor in checkpoint.tensors.items()]
        head = [(replace(checkpoint, tensors={}, notes=()), names)]
    dist.broadcast_object_list(head, device=torch.device("cpu"))
    if head[0] is None:
        return None
    found, names = head[0]
    tensors = {}
    for name, shape, dtype in names:
        mine = checkpoint.tensors[name].contiguous() if checkpoint is not None else torch.empty(shape, dtype=dtype)
        dist.broadcast(mine, src=0)
        tensors[name] = mine
    return replace(found, tensors=tensors, notes=checkpoint.notes if checkpoint is not None else ())
