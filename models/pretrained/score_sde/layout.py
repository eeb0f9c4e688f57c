"""The structure of score_sde_pytorch's networks from a state dict, and the names of our tensors there."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor, nn

from ...backbones import AttentionBlock, NCSNpp
from ...backbones.blocks.fir import FIRConvDownsample
from ...backbones.blocks.layers import ResBlock
from ...backbones.blocks.ncsnpp_levels import InputResidual, InputSkip, OutputSkip
from ..shared.renaming import (
    SAME,
    THIRDS,
    TRANSPOSED,
    Layout,
    Source,
    thirds_of,
)

Kind = Literal["fourier", "linear", "conv", "norm", "block", "attention", "resample", "pyramid_conv", "pyramid_skip"]

_BLOCK = {"norm1": "GroupNorm_0", "conv1": "Conv_0", "project": "Dense_0", "norm2": "GroupNorm_1", "conv2": "Conv_1"}
# score_sde_pytorch's own 1x1 layer in "ddpm" blocks has its weight as [in, out]
_NIN = Layout(lambda ours: [ours[:, :, 0, 0].t()], lambda theirs: theirs[0].t()[:, :, None, None])


@dataclass(frozen=True)
class Structure:
    """The structure of a network as its tensors alone say it, in the names of ``NCSNpp``.

    Attributes:
        in_channels: Channels of the data.
        channels: Width of the first level.
        widths: Width of each level.
        num_res_blocks: Residual blocks a level on the way down.
        attends: Whether each level has attention.
        block: Kind of residual block.
        resample_conv: Whether "ddpm" blocks are resampled between by convolutions.
        input_pyramid: How the image is brought in.
        output_pyramid: Whether the output is a sum of images.
        embedding: Embedding of the noise label.
        noise_features: Its features.
    """

    in_channels: int
    channels: int
    widths: tuple[int, ...]
    num_res_blocks: int
    attends: tuple[bool, ...]
    block: Literal["biggan", "ddpm"]
    resample_conv: bool
    input_pyramid: Literal["none", "residual", "skip"]
    output_pyramid: Literal["none", "skip"]
    embedding: Literal["sin_first", "fourier"]
    noise_features: int


def _modules_of(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """The tensors of each entry of ``all_modules``; none where a number is left out, since it has no parameters."""
    found: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"all_modules\.(\d{1,4})\.(.+)", name)
        if match:
            found.setdefault(int(match[1]), {})[match[2]] = tensor
    return [found.get(i, {}) for i in range(max(found, default=-1) + 1)]


def _kind_of(leaves: Mapping[str, Tensor], *, biggan: bool) -> Kind | None:
    simple: dict[int, Kind] = {1: "norm", 2: "linear", 4: "conv"}
    if "weight" in leaves:
        return simple.get(leaves["weight"].ndim)
    if "W" in leaves:
        return "fourier"
    if "NIN_3.W" in leaves:
        return "attention"
    if "Conv2d_0.weight" in leaves:
        return "pyramid_conv"
    if not leaves:
        return "resample"
    conv = leaves.get("Conv_0.weight")
    if conv is None or conv.ndim != 4:
        return None
    if "Dense_0.weight" in leaves:
        # on the way up every other block takes in more channels than it gives out
        return "resample" if "Conv_2.weight" in leaves and conv.shape[0] == conv.shape[1] else "block"
    if conv.shape[-1] == 1:
        return "pyramid_skip"
    return "pyramid_conv" if biggan else "resample"


def find_structure(tensors: Mapping[str, Tensor], *, path: Path) -> Structure:
    """Read a network's structure off its tensors.

    Args:
        tensors: A state dict of score_sde_pytorch's ``ncsnpp`` or ``ddpm``.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line, if they are of no such network.
    """
    modules = _modules_of(tensors)
    biggan = any("Conv_2.weight" in leaves for leaves in modules)
    kinds: list[Kind | None] = [_kind_of(leaves, biggan=biggan) for leaves in modules]
    wrong = f"checkpoint {path} is no ncsnpp or ddpm network of score_sde_pytorch"
    fourier = kinds[:1] == ["fourier"]
    first = 3 if fourier else 2
    if kinds[: first + 1] != ["fourier"] * fourier + ["linear", "linear", "conv"] or kinds[-1] != "conv":
        some = next(iter(tensors), "nothing")
        raise ValueError(f"{wrong}: it begins with {some}; check the source, or whether parts of it are missing")
    levels = kinds.count("resample") // 2 + 1
    per_level, rest = divmod(kinds.count("block") - 2, levels)
    if rest or per_level < 3 or per_level % 2 == 0 or kinds.count("resample") % 2:
        raise ValueError(
            f"{wrong}: {kinds.count('block')} residual blocks and {kinds.count('resample')} resamplings make no U-Net; "
            "fetch it again"
        )
    num_res_blocks = (per_level - 1) // 2
    widths, attends, at = [], [], first + 1
    for level in range(levels):
        blocks = []
        for _ in range(num_res_blocks):
            blocks.append(at)
            at += 2 if _is(kinds, at + 1, "attention") else 1
        if any(not _is(kinds, i, "block") for i in blocks):
            raise ValueError(f"{wrong}: its layers are not in the order of such a network; check the source")
        widths.append(modules[blocks[-1]]["Conv_0.weight"].shape[0])
        attends.append(_is(kinds, blocks[0] + 1, "attention"))
        at += level < levels - 1  # the resampling
        at += _is(kinds, at, "pyramid_conv") or _is(kinds, at, "pyramid_skip")
    pyramid = "residual" if "pyramid_conv" in kinds else "skip" if "pyramid_skip" in kinds else "none"
    conv_in = modules[first]["weight"]
    return Structure(
        in_channels=conv_in.shape[1],
        channels=conv_in.shape[0],
        widths=tuple(widths),
        num_res_blocks=num_res_blocks,
        attends=tuple(attends),
        block="biggan" if biggan else "ddpm",
        resample_conv=all(leaves for leaves in modules),
        input_pyramid=pyramid,
        output_pyramid="skip" if kinds.count("norm") > 1 else "none",
        embedding="fourier" if fourier else "sin_first",
        noise_features=modules[first - 2]["weight"].shape[1],
    )


def _is(kinds: Sequence[Kind | None], i: int, kind: Kind) -> bool:
    return i < len(kinds) and kinds[i] == kind


class _Namer:
    """Gives each part of our network the next numbers of their list, and finds the tensors within."""

    def __init__(self) -> None:
        self.sources: dict[str, Source] = {}
        self._next = 0

    def skip(self) -> None:
        """A part without parameters has a number too."""
        self._next += 1

    def plain(self, ours: str, inner: str = "") -> None:
        """A linear layer, convolution or norm."""
        for leaf in ("weight", "bias"):
            self._add(f"{ours}.{leaf}", f"{inner}{leaf}")
        self._next += 1

    def fourier(self, ours: str) -> None:
        """Frequencies."""
        self._add(f"{ours}.frequencies", "W")
        self._next += 1

    def block(self, ours: str, block: ResBlock, *, biggan: bool) -> None:
        """A residual block, resampling or not."""
        for mine, theirs in _BLOCK.items():
            for leaf in ("weight", "bias"):
                self._add(f"{ours}.{mine}.{leaf}", f"{theirs}.{leaf}")
        if isinstance(block.skip, nn.Conv2d) and biggan:
            for leaf in ("weight", "bias"):
                self._add(f"{ours}.skip.{leaf}", f"Conv_2.{leaf}")
        elif isinstance(block.skip, nn.Conv2d):
            self._add(f"{ours}.skip.weight", "NIN_0.W", _NIN)
            self._add(f"{ours}.skip.bias", "NIN_0.b")
        self._next += 1

    def attention(self, ours: str) -> None:
        """An attention block: its 1x1 layers are q, k, v and the projection."""
        for leaf in ("weight", "bias"):
            self._add(f"{ours}.norm.{leaf}", f"GroupNorm_0.{leaf}")
        self._add(f"{ours}.qkv.weight", "NIN_0.W,NIN_1.W,NIN_2.W", thirds_of(TRANSPOSED))
        self._add(f"{ours}.qkv.bias", "NIN_0.b,NIN_1.b,NIN_2.b", THIRDS)
        self._add(f"{ours}.proj.weight", "NIN_3.W", TRANSPOSED)
        self._add(f"{ours}.proj.bias", "NIN_3.b")
        self._next += 1

    def _add(self, ours: str, leaves: str, layout: Layout = SAME) -> None:
        names = tuple(f"all_modules.{self._next}.{leaf}" for leaf in leaves.split(","))
        self.sources[ours] = Source(names, layout)


def score_sde_sources(network: NCSNpp) -> dict[str, Source]:
    """Map a network's tensors to a state dict of score_sde_pytorch."""
    namer = _Namer()
    if network.embed.fourier is not None:
        namer.fourier("embed.fourier")
    for name in ("embed.linear1", "embed.linear2", "conv_in"):
        namer.plain(name)
    biggan = network.options["block"] == "biggan"
    for name, part in _in_order(network):
        if isinstance(part, ResBlock):
            namer.block(name, part, biggan=biggan)
        elif isinstance(part, AttentionBlock):
            namer.attention(name)
        elif isinstance(part, InputSkip):
            namer.plain(f"{name}.conv", "Conv_0.")
        elif isinstance(part, InputResidual):
            namer.plain(f"{name}.down.conv", "Conv2d_0." if isinstance(part.down, FIRConvDownsample) else "Conv_0.")
        elif isinstance(part, OutputSkip):
            namer.plain(f"{name}.norm")
            namer.plain(f"{name}.conv")
        elif any(True for _ in part.parameters()):
            namer.plain(f"{name}.conv", "Conv2d_0." if isinstance(part, FIRConvDownsample) else "Conv_0.")
        else:
            namer.skip()
    namer.plain("norm_out")
    namer.plain("conv_out")
    return namer.sources


def _in_order(network: NCSNpp) -> list[tuple[str, nn.Module]]:
    """The parts of the levels, with our names, in the order in which they are applied."""
    levels, blocks = range(len(network.down)), range(network.num_res_blocks)
    names: list[str] = []
    for i in levels:
        for j in blocks:
            names += [f"down.{i}.blocks.{j}", f"down.{i}.attention.{j}.block"]
        names += [f"down.{i}.resample", f"down.{i}.image_input"]
    names += ["middle.block1", "middle.attention.block", "middle.block2"]
    for i in reversed(levels):
        names += [f"up.{i}.blocks.{j}" for j in (*blocks, len(blocks))]
        names += [f"up.{i}.attention.block", f"up.{i}.image_output", f"up.{i}.resample"]
    parts = dict(network.named_modules())
    return [(name, parts[name]) for name in names if name in parts]
