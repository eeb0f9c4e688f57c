"""Models of ours as pipelines of Hugging Face's diffusers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sde_lib import Tabulated

from ...backbones import ADM, AttentionBlock, UNet
from ...backbones.blocks.levels import DownLevel, UpLevel
from ...score_model import NetworkScoreModel, require_posterior_mean
from ..shared.renaming import renamed
from .names import diffusers_sources
from .settings import PREDICTIONS

# the oldest version that reads all of what is written here
_VERSION = "0.30.0"


def export_diffusers(model: NetworkScoreModel, folder: Path | str) -> None:
    """Write a pipeline that ``diffusers.DDPMPipeline.from_pretrained`` loads and that ``from_diffusers`` reads back.

    The tensors are those of the model, to the bit. The scheduler is a ``DDPMScheduler`` with the model's table, whose
    settings ``DDIMScheduler.from_config`` and others take too; diffusers rounds the table to float32. A table that is
    neither linear nor the cosine one is written as a list of betas, from which it comes back to within rounding.

    Args:
        model: A ``UNet``, or an ``ADM`` as far as diffusers has its options, on a DDPM table: it is told the
            timestep, and predicts eps, x0 or v. Where the training weights and their average are apart, the latter is
            the one to export.
        folder: Where to write; it is made if it is not there.

    Raises:
        ValueError: In one line: ``UNet2DModel`` has no such network, or its schedulers no such table;
            or the model is a student of few steps or a reflow.
    """
    require_posterior_mean(model, "a pipeline of diffusers")
    scheduler = _scheduler_settings(model)
    backbone = model.backbone
    if not isinstance(backbone, ADM) or type(backbone) not in (ADM, UNet):
        raise ValueError(f"diffusers has no {type(backbone).__name__}; only UNet and ADM can be exported")
    if model.dequantizer is not None:
        raise ValueError("diffusers have no place for a dequantizer; set model.dequantizer = None to leave it out")
    unet = _unet_settings(backbone)
    folder = Path(folder)
    tensors = renamed(backbone, diffusers_sources(backbone))
    for name in ("unet", "scheduler"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    save_file(
        {name: tensor.cpu() for name, tensor in tensors.items()},
        folder / "unet" / "diffusion_pytorch_model.safetensors",
        metadata={"format": "pt"},
    )
    _write(folder / "unet" / "config.json", unet)
    _write(folder / "scheduler" / "scheduler_config.json", scheduler)
    index = {"unet": ["diffusers", "UNet2DModel"], "scheduler": ["diffusers", "DDPMScheduler"]}
    _write(folder / "model_index.json", {"_class_name": "DDPMPipeline", "_diffusers_version": _VERSION, **index})


def _write(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _scheduler_settings(model: NetworkScoreModel) -> dict[str, Any]:
    parameterization = model.parameterization
    predictions = {ours: theirs for theirs, ours in PREDICTIONS.items()}
    name = type(parameterization).__name__.removesuffix("Parameterization").lower()
    if name not in predictions:
        raise ValueError(f"diffusers' schedulers know eps, x0 and v, got parameterization {name}; it has no export")
    sde = model.sde
    told = parameterization.time_input
    if told not in ("auto", "index") or not isinstance(sde, Tabulated) or sde.family != "vp":
        raise ValueError(
            "diffusers' DDPMScheduler tells networks the timestep of a DDPM table, got a network told "
            f"{told} of {type(sde).__name__}; it has no export"
        )
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": len(sde.log_snr_table),
        **_table_settings(sde),
        "prediction_type": predictions[name],
        "variance_type": "learned_range" if model.learned_variance else "fixed_small",
        "clip_sample": True,
    }


def _table_settings(sde: Tabulated) -> dict[str, Any]:
    """The table by name, where it comes back from there to the bit, else by its betas."""
    table = sde.log_snr_table
    # 1 - beta_i = alpha_bar_i / alpha_bar_(i - 1), without cancellation
    log_alpha_bar = torch.nn.functional.logsigmoid(table)
    betas = -torch.expm1(log_alpha_bar.diff(prepend=log_alpha_bar.new_zeros(1)))
    start, end = (float(f"{float(beta):.10g}") for beta in (betas[0], betas[-1]))
    if 0 < start < 1 and 0 < end < 1:
        linear = Tabulated.ddpm(num_steps=len(table), beta_start=start, beta_end=end)
        if torch.equal(linear.log_snr_table, table):
            return {"beta_schedule": "linear", "beta_start": start, "beta_end": end, "trained_betas": None}
    if torch.equal(Tabulated.improved_ddpm(num_steps=len(table)).log_snr_table, table):
        return {"beta_schedule": "squaredcos_cap_v2", "trained_betas": None}
    return {"beta_schedule": "linear", "trained_betas": betas.tolist()}


def _unet_settings(network: ADM) -> dict[str, Any]:
    options = network.settings
    _check_network(network, options)
    groups = {module.num_groups for module in network.modules() if isinstance(module, nn.GroupNorm)}
    heads = [module for module in network.modules() if isinstance(module, AttentionBlock)]
    one_head = all(head.num_heads == 1 for head in heads)
    head_channels = {0} if one_head else {head.proj.out_features // head.num_heads for head in heads}
    for what, found in (("number of norm groups", groups), ("number of channels a head", head_channels)):
        if len(found) != 1:
            raise ValueError(f"UNet2DModel has one {what} for the whole network, got {sorted(found)}; it has no export")
    down = [len(level.attention) > 0 for level in network.stages if isinstance(level, DownLevel)]
    up = [len(level.attention) > 0 for level in network.stages if isinstance(level, UpLevel)]
    residual = options["resampling"] == "residual"
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if residual else ("DownBlock2D", "UpBlock2D")
    cos_first = options["embedding"] == "cos_first"
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _VERSION,
        "sample_size": network.image_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 0 if cos_first else 1,
        "flip_sin_to_cos": cos_first,
        "down_block_types": ["AttnDownBlock2D" if attends else plain[0] for attends in down],
        "up_block_types": ["AttnUpBlock2D" if attends else plain[1] for attends in up],
        "mid_block_type": "UNetMidBlock2D",
        "block_out_channels": network.widths,
        "layers_per_block": network.num_res_blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": int(residual or options["symmetric_downsample"]),
        "downsample_type": "resnet" if residual else "conv",
        "upsample_type": "resnet" if residual else "conv",
        "dropout": options["dropout"],
        "act_fn": "silu",
        "attention_head_dim": head_channels.pop() or None,
        "norm_num_groups": min(groups),
        "attn_norm_num_groups": min(groups) if options["middle_attention_norm"] else None,
        "norm_eps": options["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if options["scale_shift_norm"] else "default",
        "add_attention": network.middle.attention is not None,
        "class_embed_type": None,
        "num_class_embeds": network.num_classes,
    }


def _check_network(network: ADM, options: Mapping[str, Any]) -> None:
    width = network.widths[0]
    ends = network.embed.embedding_dim, network.conv_in.out_channels
    wrong = {
        "has as many noise features, and channels after the first convolution, as in its first level, "
        f"{width}, got {ends[0]} and {ends[1]}": ends != (width, width),
        f"has an embedding of {4 * width} features, four times its first level, got {4 * options['channels']}": options[
            "channels"
        ]
        != width,
        "divides by sigma after a Fourier embedding": options["embedding"] == "fourier",
        "is told classes alone, no image, values or text": sum(
            options[name] for name in ("cond_channels", "cond_values", "cond_tokens", "cond_pooled")
        )
        > 0,
        "has no Fourier features of its input": len(options["input_frequencies"]) > 0,
        f"goes with schedulers of one or two outputs a channel, got {network.out_channels} outputs for "
        f"{network.in_channels} channels": options["outputs_per_channel"] > 1,
        "normalizes before the middle's attention": not (
            options["middle_attention_norm"] or options["scale_shift_norm"]
        ),
    }
    for reason, applies in wrong.items():
        if applies:
            raise ValueError(f"UNet2DModel {reason}; such a network has no export")
