"""NCSN++ with skip connections from and to the image, as diffusers' ``UNet2DModel`` of skip blocks has it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...backbones import ImageSize, NCSNpp, level_resolutions
from ..shared.renaming import (
    THIRDS,
    Layout,
    Source,
    sources_of,
)
from ..shared.settings import Settings

_DOWN = {"SkipDownBlock2D": False, "AttnSkipDownBlock2D": True}
_UP = {"SkipUpBlock2D": False, "AttnSkipUpBlock2D": True}
_MIDDLE = {"block1": "resnets.0", "attention": "attentions.0", "block2": "resnets.1"}
_FIXED = {
    "embed.fourier.frequencies": "time_proj.weight",
    "embed.linear1": "time_embedding.linear_1",
    "embed.linear2": "time_embedding.linear_2",
    "norm_out": "conv_norm_out",
}
_LEAVES = {"project": "time_emb_proj", "skip": "conv_shortcut"}
_ATTENTION_LEAVES = {"norm": "group_norm", "proj": "to_out.0"}


def has_skip_blocks(settings: Settings) -> bool:
    """Tell a ``UNet2DModel`` that is made of skip blocks."""
    return any("Skip" in block_type for block_type in settings.words("down_block_types", ()))


def plan_skip_blocks(settings: Settings, image_size: ImageSize) -> dict[str, Any]:
    """Keyword arguments of ``NCSNpp`` for those of ``UNet2DModel``.

    Args:
        settings: Those of ``UNet2DModel``.
        image_size: Height and width, one number or (H, W).

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    widths = settings.integers("block_out_channels", (224, 448, 672, 896))
    down = settings.words("down_block_types", ())
    up = settings.words("up_block_types", ())
    unknown = [name for name in (*down, *up) if name not in _DOWN and name not in _UP]
    if unknown or len(down) != len(widths) or len(up) != len(widths):
        raise ValueError(
            f"UNet2DModel of skip blocks must have them at all of {len(widths)} levels, got {[*down]} and {[*up]}"
        )
    attends = [_DOWN[name] for name in down]
    if [_UP[name] for name in reversed(up)] != attends:
        raise ValueError(
            "UNet2DModel of skip blocks must attend at the same levels down and up; others are unsupported"
        )
    _check_widths(widths, attends)
    attending = {width for width, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    one_head = (None, *attending) if len(attending) == 1 else None
    scale = settings.number("mid_block_scale_factor", 1.0)
    if abs(scale - 2**0.5) > 1e-6:
        raise ValueError(f"UNet2DModel of skip blocks must have mid_block_scale_factor=sqrt(2), got {scale}")
    settings.refuse_unless(
        act_fn=("silu", "swish"),
        add_attention=True,
        attention_head_dim=one_head,
        attn_norm_num_groups=(None, 32) if widths[-1] >= 128 else None,
        center_input_sample=True,
        class_embed_type=None,
        in_channels=3,
        mid_block_type="UNetMidBlock2D",
        norm_num_groups=(None, 32) if min(widths[0], widths[-1]) >= 128 else None,
        num_class_embeds=None,
        out_channels=3,
        resnet_time_scale_shift="default",
        time_embedding_dim=(None, 4 * widths[0]),
        time_embedding_type="fourier",
    )
    there = level_resolutions(image_size, len(widths))
    network = {
        "image_size": image_size,
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] for width in widths),
        "num_res_blocks": settings.integer("layers_per_block", 2),
        "attention_resolutions": tuple(size for size, attend in zip(there, attends, strict=True) if attend),
        "dropout": settings.number("dropout", 0.0),
        "input_pyramid": "skip",
        "output_pyramid": "skip",
        "embedding": "fourier",
        "norm_eps": settings.number("norm_eps", 1e-5),
    }
    settings.ignore(
        (
            "downsample_padding",
            "downsample_type",
            "flip_sin_to_cos",
            "freq_shift",
            "num_train_timesteps",
            "upsample_type",
        )
    )
    settings.finish()
    return network


def _check_widths(widths: Sequence[int], attends: Sequence[bool]) -> None:
    """Refuse widths of which diffusers can build no network, or one whose norms are not ``NCSNpp``'s.

    A norm of C channels has min(C / 4, 32) groups; but that of attention has 32, and so has, nearly always, that of
    what comes in from below and beside where the way up attends.
    """
    beside = [(*widths[1:], widths[-1]), widths, (widths[0], *widths[:-1])]
    normalized = {*widths, *(width + other for row in beside for width, other in zip(widths, row, strict=True))}
    uneven = [width for width in normalized if width < 4 or width % min(width // 4, 32)]
    narrow = [width for width, attend in zip(widths, attends, strict=True) if attend and width < 128]
    if uneven or narrow or any(width % widths[0] for width in widths):
        raise ValueError(
            "UNet2DModel of skip blocks must have widths that are multiples of the first, from 128 on where they "
            "attend, and that min(width / 4, 32) divides, alone and added to their neighbours, got "
            f"{[*widths]}; others are unsupported"
        )


def _place(ours: str, last: int) -> str:
    for start, theirs in _FIXED.items():
        if ours == start or ours.startswith(f"{start}."):
            return theirs + ours.removeprefix(start)
    if ours.startswith("middle."):
        _, part, rest = ours.split(".", 2)
        return f"mid_block.{_MIDDLE[part]}.{rest}"
    found = re.fullmatch(r"(down|up)\.(\d+)\.(.*)", ours)
    if found is None:
        return ours
    side, level, rest = found[1], int(found[2]), found[3]
    block = f"down_blocks.{level}" if side == "down" else f"up_blocks.{last - level}"
    rest = re.sub(r"^blocks\.", "resnets.", rest)
    # one attention block a level on the way up, which diffusers number all the same
    rest = re.sub(r"^attention\.block\.", "attentions.0.block.", rest)
    rest = re.sub(r"^attention\.(\d+)\.", r"attentions.\1.", rest)
    rest = re.sub(r"^resample\.", f"resnet_{side}.", rest)
    rest = re.sub(r"^image_(?:input|output)\.", "skip_", rest)
    return f"{block}.{rest}"


def skip_block_sources(network: NCSNpp) -> dict[str, Source]:
    """Map a network's tensors to the state dict of ``UNet2DModel``."""
    names: dict[str, str] = {}
    layouts: dict[str, Layout] = {}
    for ours in network.state_dict():
        before, _, leaf = _place(ours, len(network.down) - 1).rpartition(".")
        block, _, layer = before.rpartition(".")
        if ".attentions." in f".{block}.":
            block = block.removesuffix(".block")
            if layer == "qkv":
                names[ours] = ",".join(f"{block}.to_{part}.{leaf}" for part in "qkv")
                layouts[ours] = THIRDS
                continue
            layer = _ATTENTION_LEAVES.get(layer, layer)
        elif ".resnet" in f".{block}":
            layer = _LEAVES.get(layer, layer)
        names[ours] = ".".join(part for part in (block, layer, leaf) if part)
    return sources_of(network, names, layouts)
