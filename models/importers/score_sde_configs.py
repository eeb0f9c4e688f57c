"""Settings of score_sde_pytorch's published checkpoints, as far as their tensors do not say them."""

from __future__ import annotations

from typing import Any


def _published() -> dict[str, dict[str, Any]]:
    """What the published checkpoints' tensors do not say, by the names of their config files."""
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, sde: str, *, size: int = 32, continuous: bool = True, dropout: float = 0.1) -> None:
        network = "ddpm" if "ddpm/" in name or "_ddpm_" in name else "ncsnpp"
        config = {"data.image_size": size, "training.sde": sde, "training.continuous": continuous}
        config |= {"model.name": network, "model.dropout": dropout}
        if network == "ncsnpp":
            config |= {"model.fir": "ncsnpp" in name, "model.skip_rescale": True}
        found[name] = config

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
