"""Optimizers by name."""

from .build import build_optimizer
from .muon import MuonWithAdamW

__all__ = ["MuonWithAdamW", "build_optimizer"]
