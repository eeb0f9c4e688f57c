"""The ADM network (``DhariwalUNet``) of EDM's checkpoints."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones import (
    ADM,
    AttentionBlock,
    ResBlock,
    height_and_width,
)
from ..shared.renaming import (
    TRANSPOSED,
    Layout,
    Source,
    load_renamed,
    pointwise,
    rename_blocks,
    rows_by_head,
    sources_of,
)
from ..shared.settings import Settings
from ..shared.tensors import strip_prefix

_LEAVES = {
    ResBlock: {"norm1": "norm0", "conv1": "conv0", "project": "affine", "norm2": "norm1", "conv2": "conv1"},
    AttentionBlock: {"norm": "norm2"},
}


def plan_edm_adm(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of ``ADM`` for those of EDM's ``DhariwalUNet``.

    Args:
        settings: Its arguments: ``img_resolution``, ``img_channels`` (or ``in_channels`` and ``out_channels``),
            ``label_dim``, ``augment_dim``, ``model_channels``, ``channel_mult``, ``num_blocks``, ``attn_resolutions``,
            ``dropout``, ``label_dropout``. What is left out has the class's default.

    Raises:
        ValueError: In one line: a setting is unknown, or of a network that is not supported.
    """
    read = Settings(settings)
    in_channels = read.integer("in_channels", read.integer("img_channels", 3))
    read.refuse_unless(
        img_channels=in_channels, out_channels=in_channels, channel_mult_emb=4, model_type="DhariwalUNet"
    )
    num_classes = read.integer("label_dim", 0)
    network = {
        "image_size": read.integer("img_resolution"),
        "in_channels": in_channels,
        "channels": read.integer("model_channels", 192),
        "channel_mult": read.numbers("channel_mult", (1, 2, 3, 4)),
        "num_res_blocks": read.integer("num_blocks", 3),
        "attention_resolutions": read.integers("attn_resolutions", (32, 16, 8)),
        "head_channels": 64,
        "floor_heads": True,
        "dropout": read.number("dropout", 0.1),
        "resampling": "residual",
        "num_classes": num_classes or None,
        "null_class": read.number("label_dropout", 0.0) > 0 and num_classes > 0,
        "norm_group_channels": 4,
    }
    # the preconditioning, and what is used in training alone
    read.ignore(("augment_dim", "class_name", "sigma_data", "sigma_min", "sigma_max", "use_fp16"))
    read.finish()
    return network


def adm_from_edm(tensors: Mapping[str, Tensor], settings: Mapping[str, Any], *, path: Path) -> ADM:
    """The network inside one of EDM's preconditioners (Karras et al. 2022).

    ``class_table`` holds the columns of EDM's linear map of class vectors; where ``label_dropout`` says that it was
    trained with it, no class, -1 here, is its vector of zeros. What maps augmentation labels is left out: without such
    labels, as in sampling, it is not used.

    Args:
        tensors: The state dict of the network, or of its preconditioner, whose names start with ``model.``.
        settings: See ``plan_edm_adm``.
        path: The file they are from, for messages.

    Returns:
        The network, in evaluation mode; its time input is ln(sigma) / 4.

    Raises:
        ValueError: In one line: a setting is wrong, or tensors are missing, unexpected, or of another shape or kind
            than the settings say.
    """
    network = ADM(**plan_edm_adm(settings)).eval()
    fill_adm(network, tensors, settings, path=path)
    return network


def fill_adm(network: ADM, tensors: Mapping[str, Tensor], settings: Mapping[str, Any], *, path: Path) -> None:
    """Load EDM's tensors into a network planned by ``plan_edm_adm``; see ``adm_from_edm``.

    Args:
        network: The network, changed in place.
        tensors: The state dict.
        settings: See ``plan_edm_adm``.
        path: The file they are from, for messages.

    Raises:
        ValueError: In one line that lists tensors that are missing, unexpected, or of another shape or kind.
    """
    left = strip_prefix(tensors, "model.")
    for name in [name for name in left if name.endswith("resample_filter")]:
        taps = left.pop(name)
        if not torch.equal(taps.double(), torch.full((1, 1, 2, 2), 0.25, dtype=torch.float64)):
            raise ValueError(
                f"checkpoint {path} resamples with another filter than [1, 1] ({name}); it is not supported"
            )
    augment = left.pop("map_augment.weight", None)
    dim = Settings(settings).integer("augment_dim", 0 if augment is None else augment.shape[-1])
    shape = None if augment is None else list(augment.shape)
    expected = [network.embed.embedding_dim, dim] if dim else None
    if shape != expected:
        raise ValueError(
            f"checkpoint {path} does not fit the network: map_augment.weight is {shape}, expected {expected}; "
            "check augment_dim"
        )
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
    names = rename_blocks(network, places, _LEAVES)
    layouts: dict[str, Layout] = {}
    for ours, module in network.named_modules():
        if isinstance(module, AttentionBlock):
            layouts[f"{ours}.qkv.weight"] = rows_by_head(module.num_heads, (1, 2, 0), pointwise(2))
            layouts[f"{ours}.qkv.bias"] = rows_by_head(module.num_heads, (1, 2, 0))
            layouts[f"{ours}.proj.weight"] = pointwise(2)
    fixed = {
        "embed.linear1": "map_layer0",
        "embed.linear2": "map_layer1",
        "embed.class_table": "map_label",
        "conv_in": f"enc.{resolution}x{resolution}_conv",
        "norm_out": "out_norm",
        "conv_out": "out_conv",
    }
    for ours, theirs in fixed.items():
        names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
    layouts["embed.class_table.weight"] = TRANSPOSED
    return sources_of(network, names, layouts)
