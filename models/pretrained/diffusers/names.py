"""Names of our U-Nets' tensors in diffusers' ``UNet2DModel``."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...backbones import (
    ADM,
    AttentionBlock,
    ResBlock,
)
from ..shared.renaming import (
    THIRDS,
    Layout,
    Source,
    blocks_of,
    rename_blocks,
    sources_of,
)

_LEAVES = {
    ResBlock: {"project": "time_emb_proj", "skip": "conv_shortcut"},
    AttentionBlock: {"norm": "group_norm", "proj": "to_out.0"},
}
# what diffusers called the layers of its attention until version 0.15, as in the files of google/ddpm-*
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _swap_halves(tensor: Tensor) -> Tensor:
    return torch.cat(tensor.chunk(2, dim=1)[::-1], dim=1)


HALVES_SWAPPED = Layout(lambda ours: [_swap_halves(ours)], lambda theirs: _swap_halves(theirs[0]))


def diffusers_sources(network: ADM, *, halves_swapped: bool = False) -> dict[str, Source]:
    """Map a network's tensors to the state dict of ``UNet2DModel``.

    Args:
        network: Our network.
        halves_swapped: The sines of the noise embedding come first there where the cosines do here, or the reverse.
    """
    last = len(network.down) - 1
    places = {
        "middle.block1": "mid_block.resnets.0",
        "middle.attention": "mid_block.attentions.0",
        "middle.block2": "mid_block.resnets.1",
    }
    for ours, _ in blocks_of(network):
        side, _, rest = ours.partition(".")
        if side != "middle":
            level, _, rest = rest.partition(".")
            theirs = f"down_blocks.{level}" if side == "down" else f"up_blocks.{last - int(level)}"
            rest = rest.replace("blocks", "resnets").replace("attention", "attentions")
            places[ours] = f"{theirs}.{rest.replace('resample', f'{side}samplers.0')}"
    names = rename_blocks(network, places, _LEAVES)
    layouts: dict[str, Layout] = {}
    for ours, block in blocks_of(network):
        if isinstance(block, AttentionBlock):
            for leaf in ("weight", "bias"):
                names[f"{ours}.qkv.{leaf}"] = ",".join(f"{places[ours]}.to_{part}.{leaf}" for part in "qkv")
                layouts[f"{ours}.qkv.{leaf}"] = THIRDS
    fixed = {
        "embed.linear1": "time_embedding.linear_1",
        "embed.linear2": "time_embedding.linear_2",
        "embed.class_table": "class_embedding",
        "conv_in": "conv_in",
        "norm_out": "conv_norm_out",
        "conv_out": "conv_out",
    }
    for ours, theirs in fixed.items():
        names |= {f"{ours}.{leaf}": f"{theirs}.{leaf}" for leaf in ("weight", "bias")}
    names["embed.fourier.frequencies"] = "time_proj.weight"
    if halves_swapped:
        layouts["embed.linear1.weight"] = HALVES_SWAPPED
    return sources_of(network, names, layouts)


def with_new_names(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of attention under the names that they have since diffusers 0.15."""
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        before, _, leaf = name.rpartition(".")
        block, _, layer = before.rpartition(".")
        if ".attentions." in f".{block}." and layer in _OLD_ATTENTION:
            name = f"{block}.{_OLD_ATTENTION[layer]}.{leaf}"
        renamed[name] = tensor
    return renamed
