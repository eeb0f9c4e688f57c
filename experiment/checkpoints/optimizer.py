"""An optimizer's state as tensors and JSON, for checkpoints, and back to the bit."""

from __future__ import annotations

import json
import math
from typing import Any

import torch
from torch import Tensor

from runtime.files import one_line

from .store import Checkpoint, mismatch

# How updates are worked out, which the machine decides, and not what they are.
_IMPLEMENTATION = ("foreach", "fused", "capturable", "differentiable")


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as JSON.

    Returns:
        Tensors named "optim.<parameter number>.<key>", and {"param_groups": ...}.
    """
    state = optimizer.state_dict()
    tensors = {
        f"optim.{number}.{key}": torch.as_tensor(value)
        for number, entries in state["state"].items()
        for key, value in entries.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def optimizer_mismatch(
    optimizer: torch.optim.Optimizer, checkpoint: Checkpoint, *, updates: int | None = None
) -> str | None:
    """The reason why a checkpoint's optimizer state cannot be restored, or None.

    Args:
        optimizer: Adam, AdamW or Muon with AdamW, over the parameters to be trained.
        checkpoint: The checkpoint.
        updates: How many updates it has made; None for one a step.
    """
    updates = checkpoint.step if updates is None else updates
    of_adam, of_muon = ("step", "exp_avg", "exp_avg_sq"), ("momentum_buffer",)
    groups = optimizer.param_groups
    parameters = [(p, of_muon if "momentum" in group else of_adam) for group in groups for p in group["params"]]
    problem = _groups_mismatch(optimizer.state_dict()["param_groups"], checkpoint.state.get("param_groups"))
    if problem is not None:
        return problem
    expected = {
        f"optim.{number}.{key}": torch.zeros(()) if key == "step" else parameter
        for number, (parameter, keys) in enumerate(parameters if updates > 0 else [])
        for key in keys
    }
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("optim.")}
    return mismatch(expected, found) or _impossible(found, updates)


def _groups_mismatch(ours: list[dict[str, Any]], theirs: Any) -> str | None:
    """The difference in the settings; those that only one of two versions of PyTorch has are left out."""
    if not isinstance(theirs, list) or len(theirs) != len(ours):
        return f"its optimizer has no {len(ours)} param_groups"
    for one, other in zip(ours, theirs, strict=True):
        same = isinstance(other, dict) and one["params"] == other.get("params")
        if not same or ("betas" in one) != ("betas" in other):
            return "its optimizer is another one (param_groups differ)"
        rate = other.get("lr")
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < math.inf:
            return f"its optimizer's lr is {one_line(repr(rate), 40)}, not a learning rate"
        for key in one.keys() & other.keys() - {"lr", *_IMPLEMENTATION}:
            # as JSON has them: its lists are tuples here
            expected, found = json.dumps(one[key]), json.dumps(other[key])
            if expected != found:
                return f"its optimizer's {key} is {one_line(found, 40)}, expected {expected}"
    return None


def _impossible(tensors: dict[str, Tensor], updates: int) -> str | None:
    """The first value that no optimizer holds after so many updates."""
    for name, tensor in tensors.items():
        if name.endswith(".step") and not (float(tensor).is_integer() and 0 < float(tensor) <= updates):
            return f"{name} is {float(tensor):g}, not a number of updates up to {updates}"
        if name.endswith((".exp_avg", ".momentum_buffer")) and not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
        # the square of a large gradient may have overflowed
        if name.endswith(".exp_avg_sq") and not bool((tensor >= 0).all()):
            return f"{name} is not a mean of squares"
    return None


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Undo ``flatten_optimizer``.

    Args:
        optimizer: An optimizer over the same parameters; how it works out its updates (fused or not) stays its own.
        tensors: Tensors by name; those not of the optimizer are ignored.
        state: What ``flatten_optimizer`` gave beside them.
    """
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            _, number, key = name.split(".", 2)
            entries.setdefault(int(number), {})[key] = tensor
    # settings that a later version of PyTorch added keep their defaults, those that it dropped are left out
    groups = [
        one | {key: value for key, value in other.items() if key in one and key not in _IMPLEMENTATION}
        for one, other in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
