"""Averages of a model's weights: one as it trains, and any width of it made afterwards."""

from .exponential import ExponentialMovingAverage
from .power_function import (
    WIDEST,
    PowerFunctionEMA,
    Profile,
    coefficients,
    gamma_of,
    profile_error,
    reconstruct,
    sigma_rel_of,
)

__all__ = [
    "WIDEST",
    "ExponentialMovingAverage",
    "PowerFunctionEMA",
    "Profile",
    "coefficients",
    "gamma_of",
    "profile_error",
    "reconstruct",
    "sigma_rel_of",
]
