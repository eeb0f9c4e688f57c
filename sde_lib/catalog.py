"""SDEs by name, as configs ask for them."""

from __future__ import annotations

import inspect
from typing import Any

from runtime.registry import Registry

from .base import SDE
from .learned import LearnedVP
from .subvp import SubVP
from .tabulated import Tabulated
from .ve import VE
from .vp import VP, CosineVP

SDES: Registry[SDE] = Registry("SDE")
register_sde = SDES.register

register_sde("vp")(VP)
register_sde("vp_cosine")(CosineVP)
register_sde("vp_learned")(LearnedVP)
register_sde("subvp")(SubVP)
register_sde("ve")(VE)
register_sde("ddpm")(Tabulated.ddpm)
register_sde("improved_ddpm")(Tabulated.improved_ddpm)
register_sde("betas")(Tabulated.from_betas)
register_sde("ncsn")(Tabulated.ncsn)


def available_sdes() -> list[str]:
    """Names that ``make_sde`` takes."""
    return SDES.names()


def sde_defaults(name: str) -> dict[str, Any]:
    """The options of an SDE that have a default, with it.

    Raises:
        ValueError: If the name is unknown.
    """
    parameters = inspect.signature(SDES.get(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def make_sde(name: str, **kwargs: Any) -> SDE:
    """Build an SDE by name.

    Args:
        name: One of ``available_sdes()``.
        **kwargs: Options of that SDE, such as ``beta_max``.

    Raises:
        ValueError: If the name, or an option, is unknown or out of range.
    """
    return SDES.make(name, **kwargs)
