"""Checks of the first time of a grid: pure noise that stands for x_t there, and x_T of another time."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import MOST_PRIOR_BITS, SDE, Point


def check_prior(sde: SDE, first: Point) -> None:
    """Refuse to begin with pure noise where a start at t_max would have kept more of the data.

    Args:
        sde: The SDE.
        first: Where the grid begins.

    Raises:
        ValueError: If more than 0.01 bits/dim of data in [-1, 1] are lost.
    """
    lost = sde.prior_bits_per_dim(first.t) - sde.prior_bits_per_dim()
    if lost > MOST_PRIOR_BITS:
        raise ValueError(
            f"the grid begins at t = {first.t:.6g}, where x_t still holds data: alpha is {first.alpha:.3g}, sigma "
            f"{first.sigma:.3g}, and pure noise loses up to {lost:.2g} bits/dim; take grid=trailing, "
            "or, with a grid of your own, an x_T of model.sde.perturb"
        )


def check_start(sde: SDE, x_T: Float[Tensor, "batch *shape"], first: Point) -> None:
    """Refuse an x_T of the size of noise at t_max where the grid begins with much less.

    The sizes are those of x / alpha, in which data look the same at all times. Noise at the grid's first time passes;
    the smaller x_T is, the more it may be off by chance.

    Args:
        sde: The SDE.
        x_T: The states, [B, ...].
        first: Where the grid begins.

    Raises:
        ValueError: If it is.
    """
    if first.t >= sde.t_max or first.alpha == 0:
        return
    rms = math.sqrt(float(x_T.detach().double().square().mean()))
    (alpha_max,) = sde.alpha(torch.tensor([sde.t_max], dtype=torch.float64)).tolist()
    by_chance = 1 + 5 / math.sqrt(2 * x_T.numel())
    std = sde.prior_std_at(first.t)
    if rms > by_chance * std and alpha_max * rms > 0.5 * first.alpha * sde.prior_std:
        raise ValueError(
            f"x_T of standard deviation {rms:.3g} is noise of t_max = {sde.t_max:.6g}, but the grid begins at t = "
            f"{first.t:.6g}, where it has {std:.3g}; draw it with sampler.prior_sample(model.sde, shape, noise)"
        )
