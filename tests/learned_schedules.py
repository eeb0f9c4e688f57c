"""Learned schedules as training leaves them, for the tests of every room."""

import torch

from sde_lib import LearnedVP


def perturbed(sde: LearnedVP, *, scale: float = 1.0, seed: int = 0) -> LearnedVP:
    """The schedule, every inner parameter moved at random, the ends a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in sde.inner_parameters():
            parameter += scale * torch.randn(parameter.shape, dtype=torch.float64, generator=generator)
        for parameter in (sde.gamma_min, sde.gamma_max):
            parameter += 0.3 * torch.randn((), dtype=torch.float64, generator=generator)
    return sde
