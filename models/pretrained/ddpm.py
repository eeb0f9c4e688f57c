"""Checkpoints of Ho et al.'s DDPM, in PyTorch as pesser/pytorch_diffusion converted them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..backbones import UNet
from .shared.plan import ModelPlan, PlannedModel
from .shared.renaming import Source, level_blocks, pointwise, sources_of, thirds
from .shared.settings import Config, Settings
from .shared.tensors import check_project, read_tensors

_INNER = {"project": "temb_proj", "skip": "nin_shortcut", "qkv": "q,k,v", "proj": "proj_out"}
_PLACES = {
    "embed.linear1": "temb.dense.0",
    "embed.linear2": "temb.dense.1",
    "middle.block1": "mid.block_1",
    "middle.attention": "mid.attn_1",
    "middle.block2": "mid.block_2",
    "conv_in": "conv_in",
    "norm_out": "norm_out",
    "conv_out": "conv_out",
}
_CIFAR10: dict[str, Any] = {"resolution": 32, "ch_mult": (1, 2, 2, 2), "dropout": 0.1}
_LSUN: dict[str, Any] = {"resolution": 256, "ch_mult": (1, 1, 2, 2, 4, 4), "dropout": 0.0}
_PUBLISHED = {"cifar10": _CIFAR10, "lsun_bedroom": _LSUN, "lsun_cat": _LSUN, "lsun_church": _LSUN}


def plan_ddpm(config: Config = "cifar10") -> ModelPlan:
    """Plan a model from the settings of pytorch_diffusion.

    Args:
        config: See ``from_ddpm``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    if isinstance(config, str):
        config = _PUBLISHED.get(config.removeprefix("ema_"), config)
    settings = Settings(config)
    in_channels = settings.integer("in_channels", 3)
    network = {
        "image_size": settings.integer("resolution"),
        "in_channels": in_channels,
        "channels": settings.integer("ch", 128),
        "channel_mult": settings.integers("ch_mult", None),
        "num_res_blocks": settings.integer("num_res_blocks", 2),
        "attention_resolutions": settings.integers("attn_resolutions", (16,)),
        "dropout": settings.number("dropout", 0.0),
    }
    settings.refuse_unless(out_ch=in_channels, resamp_with_conv=True, beta_schedule="linear")
    settings.ignore(("model_var_type",))
    sde = {
        "name": "ddpm",
        "num_steps": settings.integer("num_diffusion_timesteps", 1000),
        "beta_start": settings.number("beta_start", 1e-4),
        "beta_end": settings.number("beta_end", 0.02),
    }
    settings.finish()
    return ModelPlan("unet", network, sde)


def ddpm_sources(network: UNet) -> dict[str, Source]:
    """Map a network's tensors to those of a file of pytorch_diffusion."""
    places = dict(_PLACES)
    for name, side, level, kind, number in level_blocks(network):
        kinds = {"blocks": f"block.{number}", "attention": f"attn.{number}", "resample": f"{side}sample"}
        places[name] = f"{side}.{level}.{kinds[kind]}"
    layouts = {"qkv.weight": thirds(pointwise(2)), "qkv.bias": thirds(), "proj.weight": pointwise(2)}
    return sources_of(network, places, _INNER, lambda _: layouts)


def from_ddpm(path: Path | str, config: Config = "cifar10") -> PlannedModel:
    """Read a network of Ho et al. 2020, as pesser/pytorch_diffusion converted the released TensorFlow weights.

    Args:
        path: The ``.ckpt``, ``ema_diffusion_*.ckpt`` rather than ``diffusion_*.ckpt``.
        config: "cifar10", "lsun_bedroom", "lsun_cat" or "lsun_church" for what is published; otherwise the arguments
            of the project's ``Model`` (``resolution``, ``ch_mult``, ...) and, where they are not Ho et al.'s, of its
            diffusion (``beta_start``, ``beta_end``, ``num_diffusion_timesteps``), as a mapping, flags or a JSON file.

    Returns:
        The model, in evaluation mode, of data in [-1, 1].

    Raises:
        ValueError: In one line: the file or the config cannot be read, or they contradict each other.
    """
    path = Path(path)
    tensors = read_tensors(path)
    check_project(tensors, "temb.dense.0.weight", "pytorch_diffusion", path=path)
    return plan_ddpm(config).load(tensors, ddpm_sources, path=path)
