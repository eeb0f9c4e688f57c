"""Muon for the matrices of a transformer's blocks, and AdamW for all else, as one optimizer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MOMENTUM = 0.95
_ITERATIONS = 5
# a quintic that brings singular values of (0, 1] near 1, to about 0.7 .. 1.2, in few iterations (Jordan et al. 2024)
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon on matrices and AdamW on other parameters, at one learning rate and weight decay.

    Muon's step is a momentum whose singular values are all brought near 1. For M = U S V^T, the Nesterov momentum of an
    m x n matrix W,

        W <- (1 - lr decay) W - 0.2 lr sqrt(max(m, n)) U V^T,

    which has about the root mean square of AdamW's steps, so that one learning rate serves both.

    It is ``torch.optim.Muon(adjust_lr_fn="match_rms_adamw")`` in float32, and of all matrices of a shape at once.

    Args:
        matrices: Weights of hidden layers, [m, n] each.
        others: All other parameters, or groups of them.
        lr: Learning rate.
        betas: AdamW's.
        eps: AdamW's.
        weight_decay: Decoupled weight decay.

    Raises:
        ValueError: If a number is out of range.

    Source: Jordan et al. 2024 (Muon); Liu et al. 2025 ("Muon is scalable for LLM training"), Section 2.2.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        others: Sequence[Tensor] | Sequence[dict[str, Any]],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
    ) -> None:
        self._adamw = torch.optim.AdamW(others, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)
        of_matrices = {"params": list(matrices), "lr": lr, "weight_decay": weight_decay, "momentum": MOMENTUM}
        super().__init__([of_matrices, *self._adamw.param_groups], {})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One step of both."""
        of_matrices, *of_others = self.param_groups
        self._step_matrices(of_matrices)
        # loading a state replaces both
        self._adamw.state, self._adamw.param_groups = self.state, of_others
        self._adamw.step()

    def _step_matrices(self, group: dict[str, Any]) -> None:
        by_shape: dict[torch.Size, list[tuple[Tensor, Tensor]]] = {}
        for weight in group["params"]:
            if weight.grad is None:
                continue
            state = self.state[weight]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            momentum = state["momentum_buffer"]
            momentum.lerp_(weight.grad, 1 - group["momentum"])
            ahead = weight.grad.lerp(momentum, group["momentum"])
            by_shape.setdefault(weight.shape, []).append((weight, ahead))
        for shape, pairs in by_shape.items():
            size = 0.2 * group["lr"] * math.sqrt(max(shape))
            directions = orthogonalized(torch.stack([ahead for _, ahead in pairs]))
            for (weight, _), direction in zip(pairs, directions, strict=True):
                weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-size)


def orthogonalized(matrices: Tensor) -> Tensor:
    """About U V^T of each M = U S V^T, by the iteration X <- a X + b (X X^T) X + c (X X^T)^2 X; [K, m, n]."""
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=1e-7)
    a, b, c = _COEFFICIENTS
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x
