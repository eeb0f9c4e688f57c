"""The structure of score_sde_pytorch's networks from a state dict, and the names of our tensors there."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ...backbones import NCSNpp
from ..shared.renaming import Source, sources_of, thirds, transposed

_INNER = {
    "norm1": "GroupNorm_0",
    "conv1": "Conv_0",
    "project": "Dense_0",
    "norm2": "GroupNorm_1",
    "conv2": "Conv_1",
    "norm": "GroupNorm_0",
    "qkv.weight": "NIN_0.W,NIN_1.W,NIN_2.W",
    "qkv.bias": "NIN_0.b,NIN_1.b,NIN_2.b",
    "proj.weight": "NIN_3.W",
    "proj.bias": "NIN_3.b",
    "conv": "Conv_0",
    "frequencies": "W",
}
_LAYOUTS = {"qkv.weight": thirds(transposed), "qkv.bias": thirds(), "proj.weight": transposed}


def _pointwise_transposed(ours: Tensor) -> Sequence[Tensor]:
    """The layout of score_sde_pytorch's own 1x1 layer in "ddpm" blocks, whose weight is [in, out]."""
    return [ours[:, :, 0, 0].t()]


def _kind_of(leaves: Mapping[str, Tensor], *, biggan: bool) -> str:
    """The kind of an entry of ``all_modules`` as a letter.

    It is f for frequencies, l for a linear layer, c for a convolution, n for a norm, b for a residual block, a for
    attention, r for resampling, p or s for the image brought in by convolutions or skips, and ? for none of these.
    """
    if not leaves:
        return "r"
    for leaf, kind in (("W", "f"), ("NIN_3.W", "a"), ("Conv2d_0.weight", "p")):
        if leaf in leaves:
            return kind
    if "weight" in leaves:
        return {1: "n", 2: "l", 4: "c"}.get(leaves["weight"].ndim, "?")
    if "Conv_0.weight" not in leaves or leaves["Conv_0.weight"].ndim != 4:
        return "?"
    channels_out, channels_in, kernel, _ = leaves["Conv_0.weight"].shape
    if "Dense_0.weight" in leaves:
        # on the way up every other block takes in more channels than it gives out
        return "r" if "Conv_2.weight" in leaves and channels_out == channels_in else "b"
    return "s" if kernel == 1 else "p" if biggan else "r"


def find_options(tensors: Mapping[str, Tensor], *, path: Path) -> tuple[dict[str, Any], list[bool]]:
    """Read a network's structure off its tensors.

    Args:
        tensors: A state dict of score_sde_pytorch's ``ncsnpp`` or ``ddpm``.
        path: The file they are from, for the message.

    Returns:
        The options of ``NCSNpp`` that tensors say, and for each level whether it has attention.

    Raises:
        ValueError: In one line, if they are of no such network.
    """
    numbered: dict[int, dict[str, Tensor]] = defaultdict(dict)
    for name, tensor in tensors.items():
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name)
        if match:
            numbered[int(match[1])][match[2]] = tensor
    # a number is left out where there are no parameters
    modules = [numbered[i] for i in range(max(numbered, default=-1) + 1)]
    biggan = any("Conv_2.weight" in leaves for leaves in modules)
    kinds = "".join(_kind_of(leaves, biggan=biggan) for leaves in modules)
    levels = kinds.count("r") // 2 + 1
    # a level has one block more on the way up than on the way down, and the middle has two
    num_res_blocks = max(1, (kinds.count("b") - 2) // levels // 2)
    level = f"(b{{{num_res_blocks}}}|(?:ba){{{num_res_blocks}}})"
    found = re.match("f?llc" + f"{level}r[ps]?" * (levels - 1) + f"{level}bab", kinds)
    if found is None:
        raise ValueError(
            f"checkpoint {path} is no ncsnpp or ddpm network of score_sde_pytorch: it begins with "
            f"{next(iter(tensors), 'nothing')} and its layers are not in the order of such a network; check the "
            "source, or whether some are missing"
        )
    first = kinds.index("c")
    channels, in_channels = modules[first]["weight"].shape[:2]
    starts = [found.start(i + 1) for i in range(levels)]
    options = {
        "in_channels": in_channels,
        "channels": channels,
        "channel_mult": tuple(modules[start]["Conv_0.weight"].shape[0] // channels for start in starts),
        "num_res_blocks": num_res_blocks,
        "block": "biggan" if biggan else "ddpm",
        "resample_conv": all(modules),
        "input_pyramid": "residual" if "p" in kinds else "skip" if "s" in kinds else "none",
        "output_pyramid": "skip" if kinds.count("n") > 1 else "none",
        "embedding": "fourier" if kinds[0] == "f" else "sin_first",
        "noise_features": modules[first - 2]["weight"].shape[1],
    }
    return options, ["a" in group for group in found.groups()]


def score_sde_sources(network: NCSNpp) -> dict[str, Source]:
    """Map a network's tensors to a state dict of score_sde_pytorch, whose layers are numbered in the order of use."""
    levels, blocks = range(len(network.down)), range(network.num_res_blocks)
    names = ["embed.fourier", "embed.linear1", "embed.linear2", "conv_in"]
    for i in levels:
        for j in blocks:
            names += [f"down.{i}.blocks.{j}", f"down.{i}.attention.{j}.block"]
        names += [f"down.{i}.resample", f"down.{i}.image_input"]
    names += ["middle.block1", "middle.attention.block", "middle.block2"]
    for i in reversed(levels):
        names += [f"up.{i}.blocks.{j}" for j in (*blocks, len(blocks))] + [f"up.{i}.attention.block"]
        names += [f"up.{i}.image_output.norm", f"up.{i}.image_output.conv", f"up.{i}.resample"]
    names += ["norm_out", "conv_out"]
    there = {name for name, _ in network.named_modules()}
    places = {ours: f"all_modules.{i}" for i, ours in enumerate(name for name in names if name in there)}
    inner, layouts = dict(_INNER), dict(_LAYOUTS)
    if network.options["block"] == "biggan":
        inner["skip"] = "Conv_2"
    else:
        inner |= {"skip.weight": "NIN_0.W", "skip.bias": "NIN_0.b"}
        layouts["skip.weight"] = _pointwise_transposed
    filtered = network.options["fir_kernel"] is not None
    # a convolution that also filters has another name
    inner["down.conv"] = "Conv2d_0" if filtered else "Conv_0"
    if filtered:
        downs = [f"down.{i}.resample" for i in levels]
        places |= {f"{name}.conv": f"{places[name]}.Conv2d_0" for name in downs if name in places}
    return sources_of(network, places, inner, lambda _: layouts)
