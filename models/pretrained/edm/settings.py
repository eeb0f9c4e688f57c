"""Options of the networks of EDM's checkpoints: its DDPM++ and NCSN++ (``SongUNet``) and ADM (``DhariwalUNet``)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..shared.settings import Settings


def plan_edm_adm(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, Any]:
    """Options of ``ADM`` for the arguments of EDM's ``DhariwalUNet``.

    Args:
        tensors: The network's state dict, without prefix.
        settings: Its arguments: ``img_resolution``, ``img_channels`` (or ``in_channels`` and ``out_channels``),
            ``label_dim``, ``augment_dim``, ``model_channels``, ``channel_mult``, ``num_blocks``, ``attn_resolutions``,
            ``dropout``, ``label_dropout``. What is left out has the class's default.

    Raises:
        ValueError: In one line: a setting is of a network that is not supported, or contradicts the tensors.
    """
    in_channels = settings.integer("in_channels", settings.integer("img_channels", 3))
    settings.refuse_unless(
        img_channels=in_channels, out_channels=in_channels, channel_mult_emb=4, model_type="DhariwalUNet"
    )
    augment = tensors.get("map_augment.weight")
    settings.agree("augment_dim", 0 if augment is None else augment.shape[-1])
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
        "null_condition": settings.number("label_dropout", 0.0) > 0 and num_classes > 0,
        "norm_group_channels": 4,
    }


def plan_edm_song(tensors: Mapping[str, Tensor], settings: Settings) -> dict[str, Any]:
    """Options of ``NCSNpp`` for EDM's ``SongUNet``: all but the dropout are read off the tensors.

    Args:
        tensors: The network's state dict, without prefix.
        settings: Its arguments, where given: they are compared with the tensors.

    Raises:
        ValueError: In one line: the settings contradict the tensors.
        IndexError, KeyError, ZeroDivisionError: The tensors are of no such network.
    """
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    found = [re.fullmatch(r"enc\.(\d+)x\1_block0\.conv0\.weight", name) for name in shapes]
    sizes = sorted((int(match[1]) for match in found if match), reverse=True)
    top = f"enc.{sizes[0]}x{sizes[0]}"
    channels, in_channels = shapes[f"{top}_conv.weight"][0], shapes[f"{top}_conv.weight"][1]
    mult = tuple(shapes[f"enc.{size}x{size}_block0.conv0.weight"][0] // channels for size in sizes)
    attends = {size: f"enc.{size}x{size}_block0.qkv.weight" in shapes for size in sizes}
    features = shapes["map_layer0.weight"][1]
    classes = shapes["map_label.weight"][1] if "map_label.weight" in shapes else 0
    augment = shapes["map_augment.weight"][1] if "map_augment.weight" in shapes else 0
    names = " ".join(shapes)
    pyramid = "residual" if "aux_residual" in names else "skip" if "aux_skip" in names else "standard"
    output = "skip" if names.count("aux_conv.weight") > 1 else "standard"
    embedding = settings.agree("embedding_type", "fourier" if "map_noise.freqs" in shapes else "positional")
    filters = [tensor for name, tensor in tensors.items() if name.endswith("resample_filter")]
    taps = filters[0].double()[0, 0].sum(0) if filters else torch.ones(2)
    kernel = settings.agree("resample_filter", tuple((taps / taps[0]).tolist()))
    settings.agree("model_type", "SongUNet")
    settings.agree("channel_mult_noise", features // channels)
    settings.refuse_unless(channel_mult_emb=4)
    return {
        "image_size": settings.agree("img_resolution", sizes[0]),
        "in_channels": settings.agree("img_channels", in_channels),
        "channels": settings.agree("model_channels", channels),
        "channel_mult": settings.agree("channel_mult", mult),
        "num_res_blocks": settings.agree("num_blocks", len(re.findall(rf"{top}_block\d+\.conv0\.weight", names))),
        "attention_resolutions": settings.attention("attn_resolutions", attends),
        "dropout": settings.number("dropout", 0.0),
        # without a filter the residual encoder's convolutions are padded otherwise
        "fir_kernel": None if kernel == (1.0, 1.0) and pyramid != "residual" else kernel,
        "input_pyramid": settings.agree("encoder_type", pyramid).replace("standard", "none"),
        "output_pyramid": settings.agree("decoder_type", output).replace("standard", "none"),
        "embedding": "fourier" if embedding == "fourier" else "sin_first",
        "noise_features": features,
        "num_classes": settings.agree("label_dim", classes) or None,
        "null_condition": settings.number("label_dropout", 0.0) > 0 and classes > 0,
        "augment_dim": settings.agree("augment_dim", augment),
    }
