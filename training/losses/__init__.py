"""Losses, and the times that they take."""

from .base import LOSSES, Loss, make_loss, register_loss, weighted_error
from .bounds import ContinuousBoundLoss, DequantizedLoss, HybridLoss, VariationalLoss, row_bits
from .denoising import DDPMLoss, DenoisingScoreMatching, TableLoss

__all__ = [
    "LOSSES",
    "ContinuousBoundLoss",
    "DDPMLoss",
    "DenoisingScoreMatching",
    "DequantizedLoss",
    "HybridLoss",
    "Loss",
    "TableLoss",
    "VariationalLoss",
    "make_loss",
    "register_loss",
    "row_bits",
    "weighted_error",
]
