"""Images as sequences of patches, and tables that say where each patch is."""

import torch
from torch import Tensor

from .embedding import sinusoidal_embedding


def from_patches(patches: Tensor, size: tuple[int, int], patch_size: int) -> Tensor:
    """Put patches together to images.

    Args:
        patches: [B, N, P^2 C], row by row of the image; the values of one ordered [row, column, channel].
        size: Height and width of the images.
        patch_size: P.

    Returns:
        [B, C, H, W].
    """
    rows, columns = size[0] // patch_size, size[1] // patch_size
    grid = patches.unflatten(2, (patch_size, patch_size, -1)).unflatten(1, (rows, columns))
    return grid.permute(0, 5, 1, 3, 2, 4).flatten(4, 5).flatten(2, 3)


def grid_positions(rows: int, columns: int) -> tuple[Tensor, Tensor]:
    """Row and column of each patch, row by row, float64 [N] each."""
    row, column = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return row.flatten().double(), column.flatten().double()


def sincos_positions(rows: int, columns: int, dim: int) -> Tensor:
    """Sines and cosines of each patch's place, [N, dim]: the column in the first half, the row in the second.

    Each half is ``[sin(p w_0), ..., cos(p w_0), ...]`` with ``w_i = 10000^(-4 i / dim)``.

    Args:
        rows: Patches from top to bottom.
        columns: Patches from left to right.
        dim: Features, divisible by 4.

    Raises:
        ValueError: If it is not.

    Source: Peebles and Xie 2023, released code (after Vaswani et al. 2017).
    """
    _check_quarters("channels", dim)
    row, column = grid_positions(rows, columns)
    # cosines come first there, and sines here
    halves = [sinusoidal_embedding(one, dim // 2, cos_first=True).chunk(2, dim=1) for one in (column, row)]
    return torch.cat([torch.cat((sine, cosine), 1) for cosine, sine in halves], 1)


def rotations(rows: int, columns: int, head_channels: int) -> Tensor:
    """Cosines and sines of the angles that turn queries and keys by their places, [2, N, head_channels / 2].

    The first half of the angles is of the row, the second of the column, ``p 100^(-4 i / d)`` for a head of d channels.

    Raises:
        ValueError: If ``head_channels`` is not divisible by 4.

    Source: Su et al. 2021 (RoPE), along both axes as Heo et al. 2024, Section 3.1 ("axial", with base 100).
    """
    _check_quarters("the channels of a head", head_channels)
    quarter = head_channels // 4
    frequencies = 100.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.cat([one[:, None] * frequencies for one in grid_positions(rows, columns)], 1)
    return torch.stack((angles.cos(), angles.sin())).float()


def turned(x: Tensor, rotation: Tensor) -> Tensor:
    """Turn pairs of channels, ``(a, b) -> (a cos - b sin, a sin + b cos)``, one of each half.

    Args:
        x: Queries or keys, [B, heads, M, d]; what comes after the N places of the rotation, as words, is left alone.
        rotation: [2, N, d / 2]; see ``rotations``.
    """
    here, rest = x[:, :, : rotation.shape[1]], x[:, :, rotation.shape[1] :]
    cosine, sine = rotation.to(x.dtype)
    a, b = here.chunk(2, dim=-1)
    return torch.cat((torch.cat((a * cosine - b * sine, a * sine + b * cosine), -1), rest), 2)


def _check_quarters(name: str, dim: int) -> None:
    if dim % 4:
        raise ValueError(f"{name} must be divisible by 4 for these positions, got {dim}; change channels or num_heads")
