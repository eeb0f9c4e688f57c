"""Networks whose computation tests look at."""

from typing import Any

import torch
from torch import Tensor, nn

from models import NetworkScoreModel, make_parameterization
from models.backbones import UNet
from sde_lib import Tabulated


def network(**kwargs: Any) -> UNet:
    """An 8x8 network with every parameter drawn at random."""
    settings: dict[str, Any] = {"image_size": 8, "channels": 16, "channel_mult": (1, 2), "num_res_blocks": 1}
    net = UNet(**(settings | {"attention_resolutions": (4,), "norm_groups": 8} | kwargs))
    for name, parameter in net.named_parameters():
        nn.init.normal_(parameter, std=0.1)
        if "norm" in name and name.endswith("weight"):
            parameter.data += 1.0
    return net


class Small(nn.Module):
    """Little to trace, but dropout and a refusal of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv_in, self.project = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(1, 8)
        self.dropout, self.conv_out = nn.Dropout(dropout), nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Tensor | None = None) -> Tensor:
        if x.shape[1] != 3:
            raise ValueError(f"x must have 3 channels, got {x.shape[1]}")
        hidden = self.conv_in(x) + self.project(c_noise.float()[:, None] / 1000)[:, :, None, None]
        return self.conv_out(self.dropout(hidden.tanh())).to(x.dtype)


def batch(size: int = 4) -> tuple[Tensor, Tensor]:
    return torch.randn(size, 3, 8, 8), torch.linspace(0, 999, size, dtype=torch.float64)


def score_model(backbone: nn.Module) -> NetworkScoreModel:
    return NetworkScoreModel(backbone, Tabulated.ddpm(), make_parameterization("eps"))
