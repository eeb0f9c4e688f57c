"""Models of ours as pipelines of Hugging Face's diffusers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from sde_lib import SDE, Tabulated

from ...backbones import (
    ADM,
    AttentionBlock,
    Downsample,
    ResBlock,
    UNet,
)
from ...backbones.blocks.adm_levels import ResamplingBlock
from ...score_model import NetworkScoreModel
from ..shared.renaming import blocks_of, renamed
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
        model: A ``UNet``, or an ``ADM`` as far as diffusers has its options, on a DDPM table: it is told the table's
            row, and predicts eps, x0 or v. Where the training weights and their average are apart, the latter is the
            one to export.
        folder: Where to write; it is made if it is not there.

    Raises:
        ValueError: In one line: ``UNet2DModel`` has no such network, or its schedulers no such table.
    """
    scheduler = _scheduler_settings(model)
    backbone = model.backbone
    if not isinstance(backbone, UNet | ADM):
        raise ValueError(f"diffusers has no {type(backbone).__name__}; only UNet and ADM can be exported")
    if model.dequantizer is not None:
        raise ValueError("diffusers have no place for a dequantizer; set model.dequantizer = None to leave it out")
    unet = _unet_settings(backbone)
    folder = Path(folder)
    tensors = renamed(backbone, diffusers_sources(backbone))
    for part in ("unet", "scheduler"):
        (folder / part).mkdir(parents=True, exist_ok=True)
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
    if parameterization.noise_input not in ("auto", "index") or not _is_vp_table(model.sde):
        raise ValueError(
            "diffusers' DDPMScheduler tells networks the row of a DDPM table, got a network told "
            f"{parameterization.noise_input} of {type(model.sde).__name__}; it has no export"
        )
    assert isinstance(model.sde, Tabulated)
    return {
        "_class_name": "DDPMScheduler",
        "_diffusers_version": _VERSION,
        "num_train_timesteps": len(model.sde.log_snr_table),
        **_table_settings(model.sde),
        "prediction_type": predictions[name],
        "variance_type": "learned_range" if model.learned_variance else "fixed_small",
        "clip_sample": True,
    }


def _is_vp_table(sde: SDE) -> bool:
    return isinstance(sde, Tabulated) and sde.family == "vp"


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


def _the_one(what: str, values: Iterable[Any]) -> Any:
    found = list(dict.fromkeys(values))
    if len(found) != 1:
        raise ValueError(f"UNet2DModel has one {what} for the whole network, got {found}; it has no export")
    return found[0]


def _levels(network: UNet | ADM, side: str) -> list[tuple[list[ResBlock], bool]]:
    """Residual blocks of each level of one side, and whether it attends."""
    blocks = dict(blocks_of(network))
    levels = []
    for i in range(len(network.down)):
        here = [block for name, block in blocks.items() if name.startswith(f"{side}.{i}.blocks.")]
        residual = [block for block in here if isinstance(block, ResBlock)]
        levels.append((residual, f"{side}.{i}.attention.0" in blocks))
    return levels


def _unet_settings(network: UNet | ADM) -> dict[str, Any]:
    blocks = [block for _, block in blocks_of(network)]
    residual = [block for block in blocks if isinstance(block, ResBlock)]
    norms = [module for module in network.modules() if isinstance(module, nn.GroupNorm)]
    down, up = _levels(network, "down"), _levels(network, "up")
    widths = [_the_one("width of a level", (block.conv1.out_channels for block in level)) for level, _ in down]
    _check_ends(network, widths[0])
    scale_shift = _the_one("way to add the embedding", (block.scale_shift for block in residual))
    middle = network.middle.attention
    middle_norm = middle is None or isinstance(middle.norm, nn.GroupNorm)
    if not middle_norm and not scale_shift:
        raise ValueError("UNet2DModel normalizes before the middle's attention; such a network has no export")
    groups = _the_one("number of norm groups", (norm.num_groups for norm in norms))
    by_blocks = any(isinstance(block, ResamplingBlock) for block in blocks)
    paddings = [block.symmetric for block in blocks if isinstance(block, Downsample)]
    plain = ("ResnetDownsampleBlock2D", "ResnetUpsampleBlock2D") if by_blocks else ("DownBlock2D", "UpBlock2D")
    return {
        "_class_name": "UNet2DModel",
        "_diffusers_version": _VERSION,
        "sample_size": network.image_size,
        "in_channels": network.in_channels,
        "out_channels": network.out_channels,
        "center_input_sample": False,
        "time_embedding_type": "positional",
        "freq_shift": 1 if network.embed.kind == "sin_first" else 0,
        "flip_sin_to_cos": network.embed.kind == "cos_first",
        "down_block_types": ["AttnDownBlock2D" if attends else plain[0] for _, attends in down],
        "up_block_types": ["AttnUpBlock2D" if attends else plain[1] for _, attends in reversed(up)],
        "mid_block_type": "UNetMidBlock2D",
        "block_out_channels": widths,
        "layers_per_block": _the_one("number of blocks a level", (len(level) for level, _ in down)),
        "mid_block_scale_factor": 1,
        "downsample_padding": int(_the_one("padding", paddings)) if paddings else 1,
        "downsample_type": "resnet" if by_blocks else "conv",
        "upsample_type": "resnet" if by_blocks else "conv",
        "dropout": _the_one("dropout", (block.dropout.p for block in residual)),
        "act_fn": "silu",
        "attention_head_dim": _head_channels([block for block in blocks if isinstance(block, AttentionBlock)]),
        "norm_num_groups": groups,
        "attn_norm_num_groups": groups if middle_norm else None,
        "norm_eps": _the_one("epsilon of norms", (norm.eps for norm in norms)),
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
        "add_attention": middle is not None,
        "class_embed_type": None,
        "num_class_embeds": network.embed.num_classes,
    }


def _check_ends(network: UNet | ADM, width: int) -> None:
    features = network.embed.embedding_dim
    if features != width or network.conv_in.out_channels != width:
        raise ValueError(
            f"UNet2DModel has as many noise features, and channels after the first convolution, as in its first level, "
            f"{width}, got {features} and {network.conv_in.out_channels}; such a network has no export"
        )
    if network.embed.linear1.out_features != 4 * width:
        raise ValueError(
            f"UNet2DModel has an embedding of {4 * width} features, four times its first level, got "
            f"{network.embed.linear1.out_features}; such a network has no export"
        )
    if network.embed.kind == "fourier":
        raise ValueError("UNet2DModel divides by sigma after a Fourier embedding; such a network has no export")
    if network.conv_in.in_channels != network.in_channels:
        raise ValueError("UNet2DModel has no Fourier features of its input; such a network has no export")
    if network.out_channels not in (network.in_channels, 2 * network.in_channels):
        raise ValueError(
            f"diffusers' schedulers take one or two outputs a channel, got {network.out_channels} outputs for "
            f"{network.in_channels} channels; such a network has no export"
        )


def _head_channels(attention: list[AttentionBlock]) -> int | None:
    """Channels of every head, or None for one head a block."""
    if all(block.num_heads == 1 for block in attention):
        return None
    return _the_one("number of channels a head", (block.proj.out_features // block.num_heads for block in attention))
