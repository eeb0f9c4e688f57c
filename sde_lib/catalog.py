"""SDEs by name, as configs ask for them."""

from __future__ import annotations

import inspect
from typing import Any

from runtime.registry import Registry

from .base import SDE
from .learned import LearnedVP
from .rectified_flow import RectifiedFlow
from .subvp import SubVP
from .tabulated import Tabulated
from .ve import VE
from .vp import VP, CosineVP

SDES: Registry[SDE] = Registry("SDE")
register_sde, available_sdes, make_sde = SDES.register, SDES.names, SDES.make

register_sde("vp")(VP)
register_sde("vp_cosine")(CosineVP)
register_sde("vp_learned")(LearnedVP)
register_sde("subvp")(SubVP)
register_sde("ve")(VE)
register_sde("rectified_flow")(RectifiedFlow)
register_sde("ddpm")(Tabulated.ddpm)
register_sde("improved_ddpm")(Tabulated.improved_ddpm)
register_sde("betas")(Tabulated.from_betas)
register_sde("ncsn")(Tabulated.ncsn)


def sde_defaults(name: str) -> dict[str, Any]:
    """The options of an SDE that have a default, with it.

    Raises:
        ValueError: If the name is unknown.
    """
    parameters = inspect.signature(SDES.get(name)).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}
