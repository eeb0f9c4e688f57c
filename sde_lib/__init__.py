"""The mathematics of linear diffusions: SDEs, their tables, time grids and noise streams. No networks."""

from .base import SDE
from .catalog import available_sdes, make_sde, register_sde
from .grids import available_grids, check_grid, make_grid, register_grid
from .noise import NoiseStreams, derive_seed
from .registry import Registry, choices_message
from .shapes import check_per_sample, expand_like
from .subvp import SubVP
from .tabulated import Tabulated, cosine_betas, ddpm_betas
from .ve import VE
from .vp import VP, CosineVP

__all__ = [
    "SDE",
    "VE",
    "VP",
    "CosineVP",
    "NoiseStreams",
    "Registry",
    "SubVP",
    "Tabulated",
    "available_grids",
    "available_sdes",
    "check_grid",
    "check_per_sample",
    "choices_message",
    "cosine_betas",
    "ddpm_betas",
    "derive_seed",
    "expand_like",
    "make_grid",
    "make_sde",
    "register_grid",
    "register_sde",
]
