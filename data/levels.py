"""Grey levels, and what networks see of them."""

import torch
from torch import Tensor

from .errors import DataError


def to_model_space(images: Tensor, num_levels: int) -> Tensor:
    """Map grey levels to [-1, 1]: x = 2 k / (L - 1) - 1.

    Args:
        images: Integer tensor of any shape with values k in 0 .. L - 1.
        num_levels: L, 2 .. 256.

    Returns:
        float32 tensor of the same shape; the lowest level is exactly -1 and the highest exactly 1.

    Raises:
        DataError: If ``images`` is not of an integer dtype or ``num_levels`` is out of range.
    """
    check_num_levels(num_levels)
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise DataError(f"images must hold integer grey levels, got {images.dtype}; pass the uint8 images")
    # Dividing last, rather than multiplying by 2 / (L - 1), makes both ends exact in float32.
    return images.to(torch.float32).mul_(2).div_(num_levels - 1).sub_(1)


def to_levels(x: Tensor, num_levels: int) -> Tensor:
    """Map [-1, 1] to the nearest grey level, the exact inverse of ``to_model_space`` on its range.

    Args:
        x: Floating point tensor of any shape; values outside [-1, 1] are clamped.
        num_levels: L, 2 .. 256.

    Returns:
        uint8 tensor of the same shape with values 0 .. L - 1.

    Raises:
        DataError: If ``x`` is not floating point or has a NaN, which has no grey level.
    """
    check_num_levels(num_levels)
    if not x.is_floating_point():
        raise DataError(f"x must be floating point, got {x.dtype}; pass values in [-1, 1]")
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    if bool(wide.isnan().any()):
        raise DataError(f"x has {int(wide.isnan().sum())} NaN values of {x.numel()}; check the model that made them")
    return ((wide.clamp(-1, 1) + 1) * ((num_levels - 1) / 2)).round().to(torch.uint8)


def check_num_levels(num_levels: int) -> None:
    """Refuse a number of grey levels that uint8 pixels cannot have.

    Args:
        num_levels: The number to check.

    Raises:
        DataError: If it is not in 2 .. 256.
    """
    if not 2 <= num_levels <= 256:
        raise DataError(f"num_levels must be 2 .. 256, got {num_levels}; pixels are stored as uint8")
