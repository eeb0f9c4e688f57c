"""The norm of a gradient, whole or split over ranks, and clipping it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor


def clip_gradients(parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
    """Scale gradients to a norm of at most ``largest``; those of sharded parameters count with their other shards.

    Returns:
        The norm before.
    """
    trained = [parameter for parameter in parameters if parameter.grad is not None]
    sharded = [isinstance(parameter, DTensor) for parameter in trained]
    # the two kinds cannot be in one call
    groups = [[p for p, one in zip(trained, sharded, strict=True) if one == kind] for kind in (True, False)]
    norms = [nn.utils.get_total_norm([p.grad for p in group if p.grad is not None]) for group in groups if group]
    norms = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    if not norms:
        return torch.zeros(())
    norm = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack([one.double() for one in norms]))
    for group in groups:
        nn.utils.clip_grads_with_norm_(group, largest, norm)
    return norm
