"""Settings of score_sde_pytorch's config files, as far as tensors do not say them."""

from __future__ import annotations

import re
from typing import Any

# the config files by the size of the images: those of the published checkpoints
_PUBLISHED = {
    32: (
        "vp/cifar10_ddpmpp_continuous", "vp/cifar10_ddpmpp_deep_continuous", "vp/cifar10_ncsnpp_continuous",
        "vp/cifar10_ncsnpp_deep_continuous", "subvp/cifar10_ddpmpp_continuous", "subvp/cifar10_ddpmpp_deep_continuous",
        "subvp/cifar10_ncsnpp_continuous", "subvp/cifar10_ncsnpp_deep_continuous", "vp/cifar10_ddpmpp",
        "vp/cifar10_ncsnpp", "vp/ddpm/cifar10", "vp/ddpm/cifar10_continuous", "subvp/cifar10_ddpm_continuous",
        "ve/cifar10_ncsnpp", "ve/cifar10_ncsnpp_continuous", "ve/cifar10_ncsnpp_deep_continuous",
    ),
    256: (
        "ve/bedroom_ncsnpp_continuous", "ve/church_ncsnpp_continuous", "ve/celebahq_256_ncsnpp_continuous",
        "ve/ffhq_256_ncsnpp_continuous",
    ),
    1024: ("ve/celebahq_ncsnpp_continuous", "ve/ffhq_ncsnpp_continuous"),
}  # fmt: skip
# and those of which none is published; the project's NCSN networks are not read
_UNPUBLISHED = {
    32: ("ve/cifar10_ddpm",),
    64: ("ve/celeba_ncsnpp",),
    256: ("vp/ddpm/bedroom", "vp/ddpm/celebahq", "vp/ddpm/church"),
}


def _config(name: str, size: int) -> dict[str, Any]:
    """The settings of a config file that tensors do not say."""
    config = {
        "data.image_size": size,
        "training.sde": f"{name.partition('/')[0]}sde",
        "training.continuous": "continuous" in name,
        "model.name": "ddpm" if re.search(r"ddpm(/|_|$)", name) else "ncsnpp",
        "model.dropout": 0.1 if size < 256 else 0.0,
    }
    if config["model.name"] == "ncsnpp":
        config |= {"model.fir": "ncsnpp" in name, "model.skip_rescale": True}
    return config


PUBLISHED = {name: _config(name, size) for size, names in _PUBLISHED.items() for name in names}
# RectifiedFlow (Liu et al. 2023) is this project with another loss
_RECTIFIED = {
    "data.image_size": 32,
    "data.centered": True,
    "training.sde": "rectified_flow",
    "training.continuous": False,
    "model.name": "ncsnpp",
    "model.fir": False,
    "model.skip_rescale": True,
}
RECTIFIED = {
    "rectified_flow/cifar10_rf_gaussian_ddpmpp": _RECTIFIED | {"model.dropout": 0.15},
    "rectified_flow/cifar10_rf_gaussian_reflow_train": _RECTIFIED
    | {"model.dropout": 0.1, "reflow.reflow_type": "train_reflow", "reflow.reflow_t_schedule": "uniform"},
}
CONFIGS = PUBLISHED | RECTIFIED | {name: _config(name, size) for size, names in _UNPUBLISHED.items() for name in names}
