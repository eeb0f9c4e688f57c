"""Noise that lifts discrete data onto their bins, learned beside a model."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn


class Dequantizer(nn.Module):
    """q(u | x0) on the unit cube: each u_i is a Gaussian squashed by the normal distribution function,

        u = Phi(mean + std z),   z ~ N(0, I),   log q = sum of log phi(z) - log std - log phi(mean + std z),

    with mean and log std of each pixel from a small convolutional network that sees the image (variational
    dequantization, Ho et al. 2019, Section 3.1, with one Gaussian for their flow). A new one is uniform, exactly.

    Args:
        num_channels: Channels of the data.
        hidden_channels: Width of the network, at least 1.

    Raises:
        ValueError: If a width is below 1.
    """

    def __init__(self, num_channels: int, *, hidden_channels: int = 32) -> None:
        super().__init__()
        if num_channels < 1 or hidden_channels < 1:
            raise ValueError(f"widths must be at least 1, got {num_channels} and {hidden_channels}; try 1 and 32")
        self.num_channels = num_channels
        last = nn.Conv2d(hidden_channels, 2 * num_channels, 3, padding=1)
        nn.init.zeros_(last.weight)
        assert last.bias is not None
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(
            nn.Conv2d(num_channels, hidden_channels, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(hidden_channels, hidden_channels, 3, padding=1),
            nn.SiLU(),
            last,
        )

    def forward(
        self, x0: Float[Tensor, "batch channels height width"], z: Float[Tensor, "batch channels height width"]
    ) -> tuple[Float[Tensor, "batch channels height width"], Float[Tensor, " batch"]]:
        """u and log q(u | x0).

        Args:
            x0: Data in [-1, 1], [B, C, H, W].
            z: Standard normal noise, [B, C, H, W].

        Returns:
            u in [0, 1], float64, [B, C, H, W], and log q in nats, float64 [B].
        """
        dtype = next(self.parameters()).dtype
        mean, log_std = self.network(x0.to(dtype)).double().chunk(2, dim=1)
        z = z.double()
        place = mean + log_std.exp() * z
        # log phi(z) - log phi(place), whose constants cancel
        log_q = 0.5 * (place.square() - z.square()) - log_std
        return torch.special.ndtr(place), log_q.flatten(1).sum(1)


def place_on_bin(
    x0: Float[Tensor, "batch *shape"], u: Float[Tensor, "batch *shape"], num_levels: int
) -> tuple[Float[Tensor, "batch *shape"], float]:
    """y = x0 + width (u - 1/2), and log(dy / du) = D log width, with the distance of two grey levels as width.

    Args:
        x0: Data on the lattice, [B, ...].
        u: Places on their bins, in [0, 1], [B, ...].
        num_levels: Number of grey levels.

    Returns:
        y in float64, and D log width.
    """
    width = 2 / (num_levels - 1)
    return x0.double() + width * (u.double() - 0.5), math.log(width) * x0[0].numel()
