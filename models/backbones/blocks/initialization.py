"""Initialization of new layers."""

from typing import TypeVar

from torch import nn

Weighted = TypeVar("Weighted", nn.Conv2d, nn.Linear)


def initialize(layer: Weighted, *, zero: bool = False) -> Weighted:
    """Initialise a layer as Ho et al.: weights uniform with variance 2 / (fan_in + fan_out), biases zero.

    Args:
        layer: A convolution or linear layer, changed in place.
        zero: Make the weights zero as well, for the last layer of a residual branch (Ho et al.: scale 1e-10).

    Returns:
        The same layer.

    Source: Ho et al. 2020, released code (``variance_scaling(1, "fan_avg", "uniform")``).
    """
    if zero:
        nn.init.zeros_(layer.weight)
    else:
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer
