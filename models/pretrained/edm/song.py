"""The DDPM++ and NCSN++ networks (``SongUNet``) of EDM's checkpoints."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones import NCSNpp, height_and_width
from ...backbones.blocks.fir import fir_filter
from ..shared.renaming import (
    SAME,
    Source,
    fused_attention,
    load_renamed,
)
from ..shared.settings import Settings

_RESIDUAL = {
    "norm1": "norm0",
    "conv1": "conv0",
    "project": "affine",
    "norm2": "norm1",
    "conv2": "conv1",
    "skip": "skip",
}
_LEVEL = re.compile(r"enc\.(\d+)x(\d+)_(conv|down|block\d+|aux_\w+)\.")


def plan_edm_song(tensors: Mapping[str, Tensor], settings: Settings, *, path: Path) -> dict[str, Any]:
    """Keyword arguments of ``NCSNpp`` for EDM's ``SongUNet``: all but the dropout are read off the tensors.

    Args:
        tensors: The network's state dict, without prefix.
        settings: Its arguments, where given: they are compared with the tensors.
        path: The file they are from, for messages.

    Raises:
        ValueError: In one line: they are of no such network, or contradict the settings.
    """
    names = [match for match in map(_LEVEL.match, tensors) if match]
    first = next((match for match in names if match[3] == "conv"), None)
    blocks = sorted({(int(match[1]), match[3]) for match in names if match[3].startswith("block")})
    if first is None or not blocks or "map_layer0.weight" not in tensors:
        some = next(iter(tensors), "nothing")
        raise ValueError(f"checkpoint {path} is no SongUNet or DhariwalUNet of EDM: it has {some}; check the source")
    image_size = int(first[1])
    conv_in = tensors[f"enc.{image_size}x{image_size}_conv.weight"]
    sizes = sorted({size for size, _ in blocks}, reverse=True)
    of_first = [name for size, name in blocks if size == sizes[0]]

    def in_block(size: int, leaf: str) -> Tensor | None:
        return tensors.get(f"enc.{size}x{size}_block0.{leaf}")

    widths = [conv.shape[0] for conv in (in_block(size, "conv0.weight") for size in sizes) if conv is not None]
    if sizes != [image_size // 2**i for i in range(len(sizes))] or len(widths) != len(sizes):
        raise ValueError(
            f"checkpoint {path} has encoder levels at {sizes}, expected halves of {image_size}; fetch it again"
        )
    fourier = "map_noise.freqs" in tensors
    augment, label = tensors.get("map_augment.weight"), tensors.get("map_label.weight")
    residual = any(match[3] == "aux_residual" for match in names)
    skip = any(match[3] == "aux_skip" for match in names)
    kernel = _kernel(tensors, path=path)
    found: dict[str, Any] = {
        "image_size": image_size,
        "in_channels": conv_in.shape[1],
        "channels": conv_in.shape[0],
        "channel_mult": tuple(width // conv_in.shape[0] for width in widths),
        "num_res_blocks": len(of_first),
        "attention_resolutions": tuple(size for size in sizes if in_block(size, "qkv.weight") is not None),
        # without a filter the residual encoder's convolutions are padded otherwise
        "fir_kernel": None if kernel == (1.0, 1.0) and not residual else kernel,
        "input_pyramid": "residual" if residual else "skip" if skip else "none",
        "output_pyramid": "skip" if len([name for name in tensors if name.endswith("aux_conv.weight")]) > 1 else "none",
        "embedding": "fourier" if fourier else "sin_first",
        "noise_features": tensors["map_layer0.weight"].shape[1],
        "num_classes": None if label is None else label.shape[1],
        "augment_dim": 0 if augment is None else augment.shape[1],
    }
    said = {
        "img_resolution": image_size,
        "img_channels": found["in_channels"],
        "model_channels": found["channels"],
        "channel_mult": found["channel_mult"],
        "num_blocks": found["num_res_blocks"],
        "embedding_type": "fourier" if fourier else "positional",
        "encoder_type": "residual" if residual else "skip" if skip else "standard",
        "decoder_type": "skip" if found["output_pyramid"] == "skip" else "standard",
        "channel_mult_noise": found["noise_features"] // found["channels"],
        "label_dim": found["num_classes"] or 0,
        "augment_dim": found["augment_dim"],
        "resample_filter": kernel,
        "model_type": "SongUNet",
    }
    for name, value in said.items():
        settings.agree(name, value, path=path)
    wanted = set(settings.integers("attn_resolutions", found["attention_resolutions"])) & set(sizes)
    if wanted != set(found["attention_resolutions"]):
        raise ValueError(
            f"config's attn_resolutions is {sorted(wanted)}, but checkpoint {path} has attention at "
            f"{sorted(found['attention_resolutions'])}; correct it"
        )
    settings.refuse_unless(channel_mult_emb=4)
    null_class = settings.number("label_dropout", 0.0) > 0 and label is not None
    return found | {"dropout": settings.number("dropout", 0.0), "null_class": null_class}


def _kernel(tensors: Mapping[str, Tensor], *, path: Path) -> tuple[float, ...]:
    """The taps behind the buffers ``resample_filter``, which must be one separable filter."""
    filters = [tensor for name, tensor in tensors.items() if name.endswith("resample_filter")]
    if not filters:
        return (1.0, 1.0)
    first = filters[0].double()
    if first.ndim != 4 or first.shape[:2] != (1, 1) or first.shape[2] != first.shape[3] or float(first.sum()) <= 0:
        raise ValueError(f"checkpoint {path} has a resample_filter of shape {list(first.shape)}, expected [1, 1, K, K]")
    taps = first[0, 0].sum(0)
    kernel = tuple((taps / taps[0]).tolist())
    expected = fir_filter(kernel)
    for one in filters:
        if one.shape != first.shape or not torch.allclose(one[0, 0].double(), expected, rtol=0, atol=1e-6):
            raise ValueError(
                f"checkpoint {path} has resample_filters that are not all of the kernel {kernel}; fetch it again"
            )
    return kernel


def song_sources(network: NCSNpp) -> dict[str, Source]:
    """Map a network's tensors to a state dict of EDM's ``SongUNet``."""
    resolution, _ = height_and_width(network.image_size)  # theirs are square
    lowest = resolution // 2 ** (len(network.down) - 1)
    # in the middle of theirs stand the first two blocks of the way up
    places = {"middle.block1": f"dec.{lowest}x{lowest}_in0", "middle.block2": f"dec.{lowest}x{lowest}_in1"}
    attention = {"middle.attention.block": f"dec.{lowest}x{lowest}_in0"}
    plain = {"embed.linear1": "map_layer0", "embed.linear2": "map_layer1", "embed.class_map": "map_label"}
    plain |= {"embed.augment_map": "map_augment"}
    for i in range(len(network.down)):
        size, half = (f"{n}x{n}" for n in (resolution // 2**i, resolution // 2 ** (i + 1)))
        for j in range(network.num_res_blocks + 1):
            places |= {f"down.{i}.blocks.{j}": f"enc.{size}_block{j}", f"up.{i}.blocks.{j}": f"dec.{size}_block{j}"}
            attention[f"down.{i}.attention.{j}.block"] = f"enc.{size}_block{j}"
        attention[f"up.{i}.attention.block"] = f"dec.{size}_block{network.num_res_blocks}"
        places |= {f"down.{i}.resample": f"enc.{half}_down", f"up.{i + 1}.resample": f"dec.{size}_up"}
        plain |= {f"down.{i}.image_input.down.conv": f"enc.{half}_aux_residual"}
        plain |= {f"down.{i}.image_input.conv": f"enc.{half}_aux_skip"}
        plain |= {f"up.{i}.image_output.{leaf}": f"dec.{size}_aux_{leaf}" for leaf in ("norm", "conv")}
    full = f"{resolution}x{resolution}"
    plain |= {"conv_in": f"enc.{full}_conv", "norm_out": f"dec.{full}_aux_norm", "conv_out": f"dec.{full}_aux_conv"}
    sources: dict[str, Source] = {}
    of_attention = fused_attention(1, (1, 2, 0), 2)
    for ours in network.state_dict():
        where, _, leaf = ours.rpartition(".")
        block, _, part = where.rpartition(".")
        if where == "embed.fourier":
            sources[ours] = Source(("map_noise.freqs",), SAME)
        elif where in plain:
            sources[ours] = Source((f"{plain[where]}.{leaf}",), SAME)
        elif block in places:
            sources[ours] = Source((f"{places[block]}.{_RESIDUAL[part]}.{leaf}",), SAME)
        elif block in attention:
            name = "norm2" if part == "norm" else part
            layout = of_attention.get(f"{part}.{leaf}", SAME)
            sources[ours] = Source((f"{attention[block]}.{name}.{leaf}",), layout)
    return sources


def fill_song(network: NCSNpp, tensors: Mapping[str, Tensor], *, path: Path) -> None:
    """Load EDM's tensors into a network planned by ``plan_edm_song``.

    Args:
        network: The network, changed in place.
        tensors: The state dict of ``SongUNet``, without prefix.
        path: The file they are from, for the message.

    Raises:
        ValueError: In one line that lists tensors that are missing, unexpected, or of another shape or kind.
    """
    left = {name: tensor for name, tensor in tensors.items() if not name.endswith("resample_filter")}
    load_renamed(network, left, song_sources(network), path=path)
