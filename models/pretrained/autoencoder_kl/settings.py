"""Settings of autoencoders: diffusers' config.json, and what the tensors of latent-diffusion show."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress, count, takewhile
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from ...backbones import ImageSize, height_and_width, level_resolutions, one_or_pair
from ..shared.plan import ModelPlan
from ..shared.settings import Config, Settings
from ..shared.tensors import check_project

# of latent-diffusion's norms, whatever their width
_GROUPS = 32
_RESOLUTION = 256
CODEBOOK = "quantize.embedding.weight"


class PlannedAutoencoder(NamedTuple):
    """A plan, the scale and the shift of its latents, and what is to be said of it, a line each."""

    plan: ModelPlan
    latent_scale: float
    latent_shift: float
    notes: tuple[str, ...]


def plan_autoencoder_kl(config: Mapping[str, Any], *, image_size: ImageSize | None = None) -> PlannedAutoencoder:
    """Plan an autoencoder from the settings of diffusers' ``AutoencoderKL``.

    Args:
        config: What ``config.json`` holds; settings that are left out have the defaults of ``AutoencoderKL``.
        image_size: Size of the images; None is ``sample_size``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings({name: value for name, value in config.items() if not name.startswith("_")})
    convs = settings.flag("use_quant_conv", True)
    settings.refuse_unless(latents_mean=None, latents_std=None, use_post_quant_conv=convs)
    widths, groups, network = read_levels(settings, "AutoencoderKL", latent_channels=4, image_size=image_size)
    scale = settings.number("scaling_factor", 0.18215)
    shift = 0.0 if settings.take("shift_factor") is None else settings.number("shift_factor", 0.0)
    # the default is True, which early files do not say
    upcast = settings.flag("force_upcast", True) and "force_upcast" in config
    settings.finish()
    notes = ("the checkpoint says force_upcast: float16 overflows in this network, float32 does not",) if upcast else ()
    return planned_autoencoder(
        widths, groups, {**network, "latent_convs": convs, "bottleneck": "diagonal"}, scale, shift, notes
    )


def read_levels(
    settings: Settings, kind: str, *, latent_channels: int, image_size: ImageSize | None
) -> tuple[tuple[int, ...], int, dict[str, Any]]:
    """The settings that diffusers' autoencoders share.

    Args:
        settings: The settings.
        kind: Their class, for the message.
        latent_channels: Its default of that setting.
        image_size: Size of the images; None is ``sample_size``.

    Returns:
        Channels of each level, groups of the norms, and the options of ``Autoencoder`` but for these.

    Raises:
        ValueError: In one line: a setting is impossible, or of a network that is not supported.
    """
    widths = settings.integers("block_out_channels", (64,))
    groups = settings.integer("norm_num_groups", 32, least=1)
    in_channels = settings.integer("in_channels", 3, least=1)
    plain = {"down": ["DownEncoderBlock2D"] * len(widths), "up": ["UpDecoderBlock2D"] * len(widths)}
    for side, expected in plain.items():
        name = f"{side}_block_types"
        found = settings.words(name, expected[:1])
        if found != expected:
            raise ValueError(
                f"{name} of {kind} must be {len(widths)} times {expected[0]}, one for each width, got {found}; "
                "others are not supported"
            )
    settings.refuse_unless(
        act_fn=("silu", "swish"),
        out_channels=in_channels,
        mid_block_add_attention=True,
    )
    size = settings.take("sample_size", 32)
    network = {
        "image_size": one_or_pair(*height_and_width(size if image_size is None else image_size)),
        "in_channels": in_channels,
        "latent_channels": settings.integer("latent_channels", latent_channels, least=1),
        "num_res_blocks": settings.integer("layers_per_block", 1, least=1),
    }
    return widths, groups, network


def plan_latent_diffusion(
    tensors: Mapping[str, Tensor],
    config: Config,
    *,
    scale: float | None = None,
    image_size: ImageSize | None = None,
    path: Path,
) -> PlannedAutoencoder:
    """Plan an autoencoder of latent-diffusion from its tensors: its ``AutoencoderKL``, or with a codebook ``VQModel``.

    Args:
        tensors: Those of the autoencoder.
        config: ``scale_factor`` and ``shift_factor`` of the latents.
        scale: The first of them, where the file has it.
        image_size: Size of the images; None is 256.
        path: The file, for the message.

    Raises:
        ValueError: In one line: a setting is unknown or impossible, or the network is of another kind.
    """
    settings = Settings(config)
    notes = ()
    codebook = tensors.get(CODEBOOK)
    # those of a codebook are not scaled
    if codebook is None and scale is None and "scale_factor" not in settings.values:
        notes = (
            f"{path} does not say what latents are multiplied by for their diffusion: 1 is taken; "
            "config.source.config='--scale_factor 0.18215' is that of Stable Diffusion 1 and 2",
        )
    scale = settings.number("scale_factor", 1.0 if scale is None else scale)
    shift = settings.number("shift_factor", 0.0)
    settings.finish()
    for name in ("encoder.conv_in.weight", "encoder.down.0.block.0.conv1.weight", "encoder.conv_out.weight"):
        check_project(tensors, name, "the autoencoder of latent-diffusion", path=path)
    widths = _in_turn(tensors, "encoder.down.{}.block.0.conv1.weight")
    size = _RESOLUTION if image_size is None else image_size
    attends = [f"encoder.down.{level}.attn.0.q.weight" in tensors for level in range(len(widths))]
    network = {
        "image_size": size,
        "in_channels": tensors["encoder.conv_in.weight"].shape[1],
        "latent_channels": len(tensors["encoder.conv_out.weight"]) // (2 if codebook is None else 1),
        "num_res_blocks": len(_in_turn(tensors, "encoder.down.0.block.{}.conv1.weight")),
        "attention_resolutions": tuple(compress(level_resolutions(size, len(widths)), attends)),
        "latent_convs": "quant_conv.weight" in tensors,
        "bottleneck": "diagonal",
    }
    if codebook is not None:
        network |= {"bottleneck": "vq", "codebook_size": len(codebook)}
    return planned_autoencoder(widths, _GROUPS, network, scale, shift, notes)


def _in_turn(tensors: Mapping[str, Tensor], pattern: str) -> list[int]:
    """Output channels of the tensors that are called by a pattern with 0, 1, ..., as far as they go."""
    return [len(tensors[name]) for name in takewhile(tensors.__contains__, map(pattern.format, count()))]


def planned_autoencoder(
    widths: Sequence[int],
    groups: int,
    network: Mapping[str, Any],
    scale: float,
    shift: float,
    notes: tuple[str, ...],
) -> PlannedAutoencoder:
    """The plan of an autoencoder.

    Args:
        widths: Channels of each level.
        groups: Groups of the norms.
        network: The other options of ``Autoencoder``.
        scale: Number that latents are multiplied by for their diffusion.
        shift: Number that is subtracted before.
        notes: See ``PlannedAutoencoder``.

    Raises:
        ValueError: In one line: one of them is out of range.
    """
    if not math.isfinite(scale) or scale <= 0 or not math.isfinite(shift):
        raise ValueError(
            f"latents must be scaled by a number above 0 and shifted by a finite one, got {scale:g} and {shift:g}; "
            "correct the config"
        )
    if not widths or any(width < 1 or width % groups for width in widths):
        raise ValueError(f"widths of the autoencoder must be multiples of its {groups} norm groups, got {[*widths]}")
    options = {
        **network,
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        "norm_groups": groups,
        "norm_eps": 1e-6,
        "pixels": "gaussian",
    }
    return PlannedAutoencoder(ModelPlan("autoencoder", options), scale, shift, notes)
