"""The ADM network (``DhariwalUNet``) of EDM's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones import ADM, AttentionBlock, ResBlock, height_and_width
from ..shared.renaming import (
    TRANSPOSED,
    Source,
    attention_layouts,
    fused_attention,
    load_renamed,
    rename_blocks,
    sources_of,
)
from ..shared.settings import Settings

_LEAVES = {
    ResBlock: {"norm1": "norm0", "conv1": "conv0", "project": "affine", "norm2": "norm1", "conv2": "conv1"},
    AttentionBlock: {"norm": "norm2"},
}


def plan_edm_adm(tensors: Mapping[str, Tensor], settings: Settings, *, path: Path) -> dict[str, Any]:
    """Options of ``ADM`` for the arguments of EDM's ``DhariwalUNet``.

    Args:
        tensors: The network's state dict, without prefix.
        settings: Its arguments: ``img_resolution``, ``img_channels`` (or ``in_channels`` and ``out_channels``),
            ``label_dim``, ``augment_dim``, ``model_channels``, ``channel_mult``, ``num_blocks``, ``attn_resolutions``,
            ``dropout``, ``label_dropout``. What is left out has the class's default.
        path: The file they are from, for messages.

    Raises:
        ValueError: In one line: a setting is of a network that is not supported, or contradicts the tensors.
    """
    in_channels = settings.integer("in_channels", settings.integer("img_channels", 3))
    settings.refuse_unless(
        img_channels=in_channels, out_channels=in_channels, channel_mult_emb=4, model_type="DhariwalUNet"
    )
    augment = tensors.get("map_augment.weight")
    settings.agree("augment_dim", 0 if augment is None else augment.shape[-1], path=path)
    num_classes = settings.integer("label_dim", 0)
    return {
        "image_size": settings.integer("img_resolution"),
        "in_channels": in_channels,
        "channels": settings.integer("model_channels", 192),
        "channel_mult": settings.numbers("channel_mult", (1, 2, 3, 4)),
        "num_res_blocks": settings.integer("num_blocks", 3),
        "attention_resolutions": settings.integers("attn_resolutions", (32, 16, 8)),
        "head_channels": 64,
        "floor_heads": True,
        "dropout": settings.number("dropout", 0.1),
        "num_classes": num_classes or None,
        "null_class": settings.number("label_dropout", 0.0) > 0 and num_classes > 0,
        "norm_group_channels": 4,
    }


def fill_adm(network: ADM, tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """Load EDM's tensors into a network planned by ``plan_edm_adm``.

    ``class_table`` holds the columns of EDM's linear map of class vectors; where ``label_dropout`` says that it was
    trained with it, no class, -1 here, is its vector of zeros. What maps augmentation labels is left out: without such
    labels, as in sampling, it is not used.

    Args:
        network: The network, changed in place.
        tensors: The state dict of ``DhariwalUNet``, without prefix.
        path: The file they are from, for messages.

    Raises:
        ValueError: In one line that lists tensors that are missing, unexpected, or of another shape or kind.
    """
    filters = {name: taps for name, taps in tensors.items() if name.endswith("resample_filter")}
    for name, taps in filters.items():
        if not torch.equal(taps.double(), torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)):
            raise ValueError(
                f"checkpoint {path} resamples with another filter than [1, 1] ({name}); it is not supported"
            )
    left = {name: tensor for name, tensor in tensors.items() if name not in {*filters, "map_augment.weight"}}
    load_renamed(network, left, edm_sources(network), path=path)


def edm_sources(network: ADM) -> dict[str, Source]:
    """Map a network's tensors to the state dict of EDM's ``DhariwalUNet``."""
    places = {}
    # in the middle of theirs stand the first two blocks of the way up
    resolution, _ = height_and_width(network.image_size)  # theirs are square
    lowest = resolution // 2 ** (len(network.down) - 1)
    places["middle.block1"] = places["middle.attention"] = f"dec.{lowest}x{lowest}_in0"
    places["middle.block2"] = f"dec.{lowest}x{lowest}_in1"
    for i in range(len(network.down)):
        size = resolution // 2**i
        for j in range(network.num_res_blocks + 1):
            places[f"down.{i}.blocks.{j}"] = places[f"down.{i}.attention.{j}"] = f"enc.{size}x{size}_block{j}"
            places[f"up.{i}.blocks.{j}"] = places[f"up.{i}.attention.{j}"] = f"dec.{size}x{size}_block{j}"
        places[f"down.{i}.resample"] = f"enc.{size // 2}x{size // 2}_down"
        places[f"up.{i}.resample"] = f"dec.{size * 2}x{size * 2}_up"
    layers = {
        "embed.linear1": "map_layer0",
        "embed.linear2": "map_layer1",
        "embed.class_table": "map_label",
        "conv_in": f"enc.{resolution}x{resolution}_conv",
        "norm_out": "out_norm",
        "conv_out": "out_conv",
    }
    names = rename_blocks(network, places, _LEAVES, layers)
    layouts = attention_layouts(network, lambda heads: fused_attention(heads, (1, 2, 0), 2))
    return sources_of(network, names, layouts | {"embed.class_table.weight": TRANSPOSED})
