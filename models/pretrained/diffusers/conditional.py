"""Settings of diffusers' ``UNet2DConditionModel``, the network of Stable Diffusion 1 and 2, which attends to a text."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from typing import Any

from runtime.registry import choices_message

from ...backbones import ImageSize, height_and_width, level_resolutions, one_or_pair
from ..shared.plan import plan_network
from ..shared.settings import Settings

CONDITIONAL = "UNet2DConditionModel"
# each block type: whether it attends
_DOWN = {"DownBlock2D": False, "CrossAttnDownBlock2D": True}
_UP = {"UpBlock2D": False, "CrossAttnUpBlock2D": True}
# of what other pipelines add, the only values that are known here
_PLAIN: dict[str, Any] = {
    "act_fn": ("silu", "swish"), "addition_embed_type": None, "addition_time_embed_dim": None,
    "attention_type": "default", "center_input_sample": False, "class_embed_type": None,
    "class_embeddings_concat": False, "conv_in_kernel": 3, "conv_out_kernel": 3, "cross_attention_norm": None,
    "downsample_padding": (1, 0), "dual_cross_attention": False, "encoder_hid_dim": None, "encoder_hid_dim_type": None,
    "freq_shift": (0, 1), "mid_block_only_cross_attention": (None, False), "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "num_attention_heads": None, "num_class_embeds": None,
    "only_cross_attention": False, "projection_class_embeddings_input_dim": None, "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False, "reverse_transformer_layers_per_block": None, "time_cond_proj_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None,
}  # fmt: skip
# of how attention is computed, of how a projection's weight is stored, and of a part that is refused
_OF_NO_EFFECT = ("addition_embed_type_num_heads", "upcast_attention", "use_linear_projection")


def plan_conditional_unet(settings: Settings) -> tuple[str, dict[str, Any]]:
    """The backbone and its options, from what ``unet/config.json`` holds.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    widths = settings.integers("block_out_channels", (320, 640, 1280, 1280))
    image_size = image_size_of(settings)
    attends = _plan_levels(settings, len(widths))
    in_channels = settings.integer("in_channels", 4)
    if settings.integer("out_channels", 4) != in_channels:
        raise ValueError(
            f"{CONDITIONAL} must have as many out_channels as in_channels={in_channels}, got "
            f"{settings.integer('out_channels', 4)}; those that are told an image, as for inpainting, are unsupported"
        )
    settings.refuse_unless(**_PLAIN, time_embedding_dim=(None, 4 * widths[0]))
    num_heads, head_channels = _plan_heads(settings, widths, attends)
    network = {
        "image_size": image_size,
        "in_channels": in_channels,
        "channels": widths[0],
        "channel_mult": tuple(width // widths[0] if width % widths[0] == 0 else width / widths[0] for width in widths),
        "num_res_blocks": settings.integer("layers_per_block", 2),
        "attention_resolutions": (),
        "middle_attention": False,
        "cross_attention_resolutions": tuple(compress(level_resolutions(image_size, len(widths)), attends)),
        "transformer_depth": settings.integer("transformer_layers_per_block", 1),
        "cond_tokens": settings.integer("cross_attention_dim", 1280),
        "num_heads": num_heads,
        "head_channels": head_channels,
        "dropout": settings.number("dropout", 0.0),
        "norm_eps": settings.number("norm_eps", 1e-5),
        "norm_groups": settings.integer("norm_num_groups", 32),
        "scale_shift_norm": settings.choice("resnet_time_scale_shift", "default", ("default", "scale_shift"))
        == "scale_shift",
        "resampling": "convolution",
        "symmetric_downsample": settings.integer("downsample_padding", 1) == 1,
        "embedding": "cos_first" if settings.integer("freq_shift", 0) == 0 else "sin_first",
    }
    settings.flag("flip_sin_to_cos", True)
    settings.ignore(_OF_NO_EFFECT)
    settings.finish()
    return plan_network(network)


def image_size_of(settings: Settings) -> ImageSize:
    """The setting ``sample_size``, one number or height and width.

    Raises:
        ValueError: In one line: it is missing, or something else.
    """
    size = settings.take("sample_size")
    if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
        return one_or_pair(*height_and_width(size))
    return settings.integer("sample_size")


def _plan_levels(settings: Settings, num_levels: int) -> list[bool]:
    """The levels that attend, from the highest resolution on."""
    down = settings.words("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    up = settings.words("up_block_types", ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3)[::-1]
    found = []
    for types, table in ((down, _DOWN), (up, _UP)):
        if len(types) != num_levels:
            raise ValueError(f"{CONDITIONAL} must have a block type for each of {num_levels} levels, got {list(types)}")
        for block_type in types:
            if block_type not in table:
                raise ValueError(choices_message(f"block type of {CONDITIONAL}", block_type, sorted(table)))
        found.append([table[block_type] for block_type in types])
    if found[0] != found[1]:
        raise ValueError(
            f"{CONDITIONAL} must attend at the same levels down and up, got {down} and {up[::-1]}; others are "
            "unsupported"
        )
    return found[0]


def _plan_heads(settings: Settings, widths: Sequence[int], attends: Sequence[bool]) -> tuple[int, int | None]:
    """Heads of every block, or channels of every head: what the settings call ``attention_head_dim`` counts heads."""
    said = settings.take("attention_head_dim", 8)
    listed = isinstance(said, list | tuple)
    heads = settings.integers("attention_head_dim") if listed else (settings.integer("attention_head_dim", 8),)
    heads = heads if listed else heads * len(widths)
    if len(heads) != len(widths) or any(count < 1 or width % count for width, count in zip(widths, heads, strict=True)):
        raise ValueError(
            f"attention_head_dim of {CONDITIONAL} must be a number of heads that divides the channels of each level, "
            f"{list(widths)}, got {said}; correct it"
        )
    # the middle attends too
    used = [*compress(zip(widths, heads, strict=True), attends), (widths[-1], heads[-1])]
    counts, sizes = {count for _, count in used}, {width // count for width, count in used}
    if len(counts) > 1 and len(sizes) > 1:
        raise ValueError(
            f"{CONDITIONAL} must have as many heads at every level, or heads of as many channels, got {said} heads of "
            f"{list(widths)} channels; others are unsupported"
        )
    return (counts.pop(), None) if len(counts) == 1 else (1, sizes.pop())
