"""Names of our autoencoder's tensors in the files of diffusers and of latent-diffusion."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from ...backbones.blocks.layers import AttentionBlock, ResBlock
from ...backbones.blocks.resampling import Downsample, Upsample
from ...first_stage import Autoencoder
from ...first_stage.autoencoder import Blocks
from ..diffusers.names import with_new_names
from ..shared.renaming import Source, sources_of, thirds


@dataclass(frozen=True)
class Names:
    """Names in files of a project.

    Attributes:
        down: Of a level of the encoder, by ``level``, 0 at the highest resolution, or ``turn``, its place in the order
            of use.
        up: The same of the decoder.
        blocks: Of the n-th block of a kind in a level.
        middle: Of the middle's three blocks.
        norm: Of the last norm of encoder and decoder.
        inner: See ``sources_of``.
    """

    down: str
    up: str
    blocks: Mapping[type[nn.Module], str]
    middle: tuple[str, str, str]
    norm: str
    inner: Mapping[str, str]


DIFFUSERS = Names(
    down="down_blocks.{level}",
    up="up_blocks.{turn}",
    blocks={
        ResBlock: "resnets.{n}",
        AttentionBlock: "attentions.{n}",
        Downsample: "downsamplers.0",
        Upsample: "upsamplers.0",
    },
    middle=("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1"),
    norm="conv_norm_out",
    inner={"skip": "conv_shortcut", "norm": "group_norm", "qkv": "to_q,to_k,to_v", "proj": "to_out.0"},
)
LATENT_DIFFUSION = Names(
    down="down.{level}",
    up="up.{level}",
    blocks={ResBlock: "block.{n}", AttentionBlock: "attn.{n}", Downsample: "downsample", Upsample: "upsample"},
    middle=("mid.block_1", "mid.attn_1", "mid.block_2"),
    norm="norm_out",
    inner={"skip": "nin_shortcut", "qkv": "q,k,v", "proj": "proj_out"},
)
_OF_ATTENTION = re.compile(r"\.(?:to_q|to_k|to_v|to_out\.0|q|k|v|proj_out)\.weight$")


def named_layers(network: Autoencoder) -> nn.ModuleDict:
    """The layers of a network: all but the scale of its pixels, which these projects do not have, and a codebook."""
    return nn.ModuleDict({name: layer for name, layer in network.named_children() if name != "bottleneck"})


def autoencoder_sources(network: Autoencoder, names: Names) -> dict[str, Source]:
    """Map the tensors of ``named_layers`` to those of a file, in the form of ``in_one_form``.

    Args:
        network: Our network.
        names: The names in the file.
    """
    places = {"to_latent": "quant_conv", "from_latent": "post_quant_conv"}
    for side, layers in (("encoder", network.encoder), ("decoder", network.decoder)):
        last = len(layers) - 1
        within = {"0": "conv_in", f"{last - 2}": names.norm, f"{last}": "conv_out"}
        stages = {index: layer for index, layer in enumerate(layers) if isinstance(layer, Blocks)}
        # the encoder ends with the middle, the decoder begins with it
        *levels, middle = stages if side == "encoder" else reversed(stages)
        for level, index in enumerate(levels):
            pattern = names.down if side == "encoder" else names.up
            theirs = pattern.format(level=level, turn=len(levels) - 1 - level)
            seen: Counter[type[nn.Module]] = Counter()
            for k, block in enumerate(stages[index].blocks):
                within[f"{index}.blocks.{k}"] = f"{theirs}.{names.blocks[type(block)].format(n=seen[type(block)])}"
                seen[type(block)] += 1
        within |= {f"{middle}.blocks.{k}": theirs for k, theirs in enumerate(names.middle)}
        places |= {f"{side}.{ours}": f"{side}.{theirs}" for ours, theirs in within.items()}
    layouts = {"qkv.weight": thirds(), "qkv.bias": thirds()}
    return sources_of(named_layers(network), places, names.inner, lambda _: layouts)


def in_one_form(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors, those of attention under diffusers' new names and as matrices.

    latent-diffusion's are convolutions of kernel 1, and so are those of some old files of diffusers.
    """
    return {
        name: tensor[:, :, 0, 0] if _OF_ATTENTION.search(name) and tensor.shape[2:] == (1, 1) else tensor
        for name, tensor in with_new_names(tensors).items()
    }
