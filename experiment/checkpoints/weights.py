"""A model's weights under the names that they have in checkpoints."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from models import NetworkModel

from .sharding import split_like


def _learned_besides(model: NetworkModel) -> list[tuple[str, nn.Module]]:
    """The modules that a model learns besides its backbone, which most have none of."""
    pairs = [("sde", model.sde), *((name, getattr(model, name, None)) for name in ("dequantizer", "first_stage"))]
    return [(name, module) for name, module in pairs if isinstance(module, nn.Module)]


def named_weights(model: NetworkModel, averaged: NetworkModel) -> dict[str, Tensor]:
    """Names and tensors of both sets of weights, as checkpoints hold them.

    Args:
        model: The model that is trained.
        averaged: The average of its weights.
    """
    both = (("model.", model), ("ema.", averaged))
    tensors = {f"{prefix}{name}": value for prefix, m in both for name, value in m.backbone.state_dict().items()}
    for prefix, m in both:
        for owner, module in _learned_besides(m):
            tensors |= {f"{owner}.{prefix}{name}": value for name, value in module.state_dict().items()}
    return tensors


@torch.no_grad()
def load_weights(model: NetworkModel, tensors: dict[str, Tensor], prefix: str) -> None:
    """Copy weights of a checkpoint into a model.

    Args:
        model: The model.
        tensors: The checkpoint's tensors.
        prefix: "model." or "ema.".
    """
    modules = [(prefix, model.backbone), *((f"{owner}.{prefix}", module) for owner, module in _learned_besides(model))]
    for start, module in modules:
        for name, target in module.state_dict().items():
            target.copy_(split_like(tensors[f"{start}{name}"], target))


def digest_of(*arrays: torch.Tensor) -> str:
    """Digest of the values, shapes and types of arrays."""
    total = hashlib.sha256()
    for array in arrays:
        array = array.detach().cpu().contiguous()
        total.update(f"{array.dtype} {list(array.shape)};".encode())
        total.update(array.flatten().view(torch.uint8).numpy().data if array.numel() else b"")
    return total.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Digest of all that a model has learned, and of its buffers."""
    state = model.state_dict()
    return digest_of(*(state[key] for key in sorted(state)))
