"""Settings of score_sde_pytorch's config files, as far as tensors do not say them."""

from __future__ import annotations

import re
from typing import Any


def _config(name: str, sde: str, *, size: int = 32, continuous: bool = True, dropout: float = 0.1) -> dict[str, Any]:
    """The settings of the config file ``name`` that tensors do not say."""
    network = "ddpm" if re.search(r"ddpm(/|_|$)", name) else "ncsnpp"
    config = {"data.image_size": size, "training.sde": sde, "training.continuous": continuous}
    config |= {"model.name": network, "model.dropout": dropout}
    if network == "ncsnpp":
        config |= {"model.fir": "ncsnpp" in name, "model.skip_rescale": True}
    return config


def _published() -> dict[str, dict[str, Any]]:
    """The configs of the published checkpoints."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, sde: str, *, size: int = 32, continuous: bool = True, dropout: float = 0.1) -> None:
        found[name] = _config(name, sde, size=size, continuous=continuous, dropout=dropout)

    for family, sde in (("vp", "vpsde"), ("subvp", "subvpsde")):
        for network in ("ddpmpp", "ncsnpp"):
            for deep in ("", "_deep"):
                add(f"{family}/cifar10_{network}{deep}_continuous", sde)
    for network in ("ddpmpp", "ncsnpp"):
        add(f"vp/cifar10_{network}", "vpsde", continuous=False)
    add("vp/ddpm/cifar10", "vpsde", continuous=False)
    add("vp/ddpm/cifar10_continuous", "vpsde")
    add("subvp/cifar10_ddpm_continuous", "subvpsde")
    add("ve/cifar10_ncsnpp", "vesde", continuous=False)
    for name, size, dropout in (
        ("cifar10_ncsnpp_continuous", 32, 0.1),
        ("cifar10_ncsnpp_deep_continuous", 32, 0.1),
        ("bedroom_ncsnpp_continuous", 256, 0.0),
        ("church_ncsnpp_continuous", 256, 0.0),
        ("celebahq_256_ncsnpp_continuous", 256, 0.0),
        ("ffhq_256_ncsnpp_continuous", 256, 0.0),
        ("celebahq_ncsnpp_continuous", 1024, 0.0),
        ("ffhq_ncsnpp_continuous", 1024, 0.0),
    ):
        add(f"ve/{name}", "vesde", size=size, dropout=dropout)
    return found


PUBLISHED = _published()
# and those of which none is published; the project's NCSN networks are not read
CONFIGS = PUBLISHED | {
    "ve/cifar10_ddpm": _config("ve/cifar10_ddpm", "vesde", continuous=False),
    "ve/celeba_ncsnpp": _config("ve/celeba_ncsnpp", "vesde", size=64, continuous=False),
} | {
    f"vp/ddpm/{name}": _config(f"vp/ddpm/{name}", "vpsde", size=256, continuous=False, dropout=0.0)
    for name in ("bedroom", "celebahq", "church")
}  # fmt: skip
