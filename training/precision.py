"""Precision of the network alone: alpha, sigma, losses and optimizer stay in float32 or wider."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


class PrecisionBackbone(nn.Module):
    """Runs a backbone channels-last, under autocast if asked; shares its parameters.

    Args:
        backbone: The network.
        dtype: torch.float32, or torch.bfloat16 for autocast.
    """

    def __init__(self, backbone: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner = backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self.dtype = dtype

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        """Call the backbone."""
        if x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(x.device.type, dtype=torch.bfloat16, enabled=self.dtype == torch.bfloat16):
            return self.inner(x, c_noise, cond)
