"""Names of our U-Nets' tensors in diffusers' ``UNet2DModel`` and ``UNet2DConditionModel``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...backbones import ADM, NCSNpp
from ..shared.renaming import (
    Layout,
    Source,
    level_blocks,
    sources_of,
    thirds,
    transformer_layouts,
    transformer_names,
)

_INNER = {
    "project": "time_emb_proj",
    "skip": "conv_shortcut",
    "norm": "group_norm",
    "qkv": "to_q,to_k,to_v",
    "proj": "to_out.0",
    "frequencies": "weight",
}
_PLACES = {
    "embed.linear1": "time_embedding.linear_1",
    "embed.linear2": "time_embedding.linear_2",
    "embed.class_table": "class_embedding",
    "embed.fourier": "time_proj",
    "conv_in": "conv_in",
    "middle.block1": "mid_block.resnets.0",
    "middle.attention": "mid_block.attentions.0",
    "middle.attention.block": "mid_block.attentions.0",
    "middle.cross_attention": "mid_block.attentions.0",
    "middle.block2": "mid_block.resnets.1",
    "norm_out": "conv_norm_out",
    "conv_out": "conv_out",
}
# what diffusers called the layers of its attention until version 0.15, as in the files of google/ddpm-*
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def swapped_halves(ours: Tensor) -> Sequence[Tensor]:
    """The layout of a matrix whose inputs, sines and cosines of a noise embedding, are in the other order there."""
    return [torch.cat(ours.chunk(2, dim=1)[::-1], dim=1)]


def diffusers_sources(
    network: ADM | NCSNpp, *, halves_swapped: bool = False, convolutions: bool = True
) -> dict[str, Source]:
    """Map a network's tensors to the state dict of ``UNet2DModel``, or of ``UNet2DConditionModel``.

    Args:
        network: Our network; an ``NCSNpp`` is one of skip blocks.
        halves_swapped: The sines of the noise embedding come first there where the cosines do here, or the reverse.
        convolutions: The projections into and out of transformers are convolutions of kernel 1 there.
    """
    places, last = dict(_PLACES), len(network.down) - 1
    for name, side, level, kind, index in level_blocks(network):
        resample = f"resnet_{side}" if isinstance(network, NCSNpp) else f"{side}samplers.0"
        kinds = {"blocks": f"resnets.{index}", "attention": f"attentions.{index}", "resample": resample}
        kinds["cross_attention"] = kinds["attention"]
        places[name] = f"{side}_blocks.{level if side == 'down' else last - level}.{kinds[kind]}"
    for i in range(last + 1):
        places[f"down.{i}.image_input.conv"] = f"down_blocks.{i}.skip_conv"
        for layer in ("norm", "conv"):
            places[f"up.{i}.image_output.{layer}"] = f"up_blocks.{last - i}.skip_{layer}"
    depth = network.options.get("transformer_depth", 0)
    layouts: dict[str, Layout] = {"qkv.weight": thirds(), "qkv.bias": thirds()}
    layouts |= transformer_layouts(depth, convolutions=convolutions)
    if halves_swapped:
        layouts["embed.linear1.weight"] = swapped_halves
    inner = {**_INNER, "norm": "norm", **transformer_names(depth)} if depth else _INNER
    return sources_of(network, places, inner, lambda _: layouts)


def with_new_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of attention under the names that they have since diffusers 0.15."""
    old = re.compile(rf"(?<=\.)({'|'.join(_OLD_ATTENTION)})(?=\.\w+$)")
    return {old.sub(lambda layer: _OLD_ATTENTION[layer[0]], name): tensor for name, tensor in tensors.items()}
