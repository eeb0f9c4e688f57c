"""Precision of the network alone: alpha, sigma, losses and optimizer stay in float32 or wider."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from models import NetworkScoreModel
from sde_lib import choices_message


def pick_precision(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the network's arithmetic.

    Args:
        name: "fp32", "bf16", or "auto": bf16 on a GPU that has it, else fp32.
        device: Where the network runs.

    Raises:
        ValueError: If the name is unknown.
    """
    if name == "auto":
        name = "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name not in ("fp32", "bf16"):
        raise ValueError(choices_message("precision", name, ["auto", "bf16", "fp32"]))
    return torch.bfloat16 if name == "bf16" else torch.float32


@dataclass(frozen=True)
class NetworkMode:
    """How the network computes.

    Attributes:
        precision: torch.float32 or torch.bfloat16.
        compiled: Whether it is compiled.
        reasons: What was picked and why, a line each.
    """

    precision: torch.dtype
    compiled: bool
    reasons: tuple[str, ...] = ()

    def recorded(self) -> dict[str, Any]:
        """As checkpoints hold it."""
        return {"precision": "bf16" if self.precision == torch.bfloat16 else "fp32", "compile": self.compiled}


def pick_mode(
    precision: str,
    compile: str,
    device: torch.device,
    *,
    backbone: nn.Module | None = None,
    work: float = 0.0,
    recorded: dict[str, Any] | None = None,
) -> NetworkMode:
    """Stub."""
    if precision == "auto" and recorded:
        precision = recorded.get("precision", "auto")
    return NetworkMode(pick_precision(precision, device), False)


class PrecisionBackbone(nn.Module):
    """Runs a backbone channels-last, under autocast if asked; shares its parameters.

    Args:
        backbone: The network.
        dtype: torch.float32, or torch.bfloat16 for autocast.
        compiled: Compile it.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype, *, compiled: bool = False) -> None:
        super().__init__()
        self.inner = backbone
        if not any(isinstance(parameter, DTensor) for parameter in backbone.parameters()):
            backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.dtype = dtype

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Call the backbone."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.inner(x, c_noise, cond)


def forward_flops(backbone: nn.Module, image_shape: tuple[int, ...]) -> float:
    """Stub."""
    return 0.0


def fast_inference(model: NetworkScoreModel, mode: NetworkMode) -> NetworkScoreModel:
    """Stub."""
    return NetworkScoreModel(
        PrecisionBackbone(model.backbone, mode.precision, compiled=mode.compiled),
        model.sde,
        model.parameterization,
        learned_variance=model.learned_variance,
        dequantizer=model.dequantizer,
    ).eval()
