"""Diffusion transformers of facebookresearch/DiT and of willisma/SiT, whose tensors have the same names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ...backbones import DiT
from ...backbones.blocks.patches import sincos_positions
from ..shared.plan import ModelPlan, PlannedModel
from ..shared.renaming import Source, sources_of
from ..shared.settings import Config, Settings
from ..shared.tensors import as_tensors, check_project, notes_on_types, read_checkpoint, strip_prefix

# heads by width, of S, B, L and XL, which no tensor shows
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}
# both projects have this number in their code, as that of Stable Diffusion's autoencoder
LATENT_SCALE = 0.18215
_PLACES = {
    "patches": "x_embedder.proj", "embed.linear1": "t_embedder.mlp.0", "embed.linear2": "t_embedder.mlp.2",
    "embed.class_table": "y_embedder.embedding_table", "last.modulate": "final_layer.adaLN_modulation.1",
    "last.linear": "final_layer.linear",
}  # fmt: skip
_INNER = {
    "attention.qkv": "attn.qkv", "attention.proj": "attn.proj", "linear1": "mlp.fc1", "linear2": "mlp.fc2",
    "modulate": "adaLN_modulation.1",
}  # fmt: skip


def dit_sources(network: DiT) -> dict[str, Source]:
    """Map a network's tensors to the state dict of DiT's and SiT's class."""
    blocks = {f"blocks.{i}": f"blocks.{i}" for i in range(len(network.blocks))}
    return sources_of(network, _PLACES | blocks, _INNER, lambda _: {})


def plan_dit(tensors: Mapping[str, Tensor], config: Config, *, path: Path) -> ModelPlan:
    """Plan a model of facebookresearch/DiT from its tensors and settings; see ``from_dit``.

    Args:
        tensors: The network's state dict, without prefix.
        config: See ``from_dit``.
        path: The file, for messages.

    Raises:
        ValueError: In one line: a setting is missing or unknown, or contradicts the tensors.
    """
    network = _plan_network(tensors, settings := Settings(config), path)
    settings.finish()
    return ModelPlan("dit", network, {"name": "ddpm"}, parameterization="eps", time_input="index")


def from_dit(path: Path | str, config: Config = "") -> PlannedModel:
    """Read a network of facebookresearch/DiT: of latents, on DDPM's table of 1000 linear betas, predicting eps.

    Args:
        path: The ``.pt``: a state dict, as published, or what the project's training saves, of which ``ema`` is read.
        config: What the tensors do not say, as flags, mapping or JSON file: ``--num_heads`` of a width other than
            384, 768, 1024 and 1152, those of S, B, L and XL.

    Returns:
        The model, in evaluation mode, of latents times 0.18215; label -1 is the project's row ``num_classes``.

    Raises:
        ValueError: In one line: the file cannot be read, is of another project, or contradicts the config.

    Source: Peebles and Xie 2023.
    """
    path = Path(path)
    tensors = _read(path, "facebookresearch/DiT")
    return _load(plan_dit(tensors, config, path=path), tensors, path)


def plan_sit(tensors: Mapping[str, Tensor], config: Config, *, path: Path) -> ModelPlan:
    """Plan a model of willisma/SiT from its tensors and settings; see ``from_sit`` and ``plan_dit``."""
    settings = Settings(config)
    settings.refuse_unless(**{"path-type": "Linear", "prediction": "velocity"})
    network = _plan_network(tensors, settings, path) | {"learned_variance": False}
    settings.finish()
    return ModelPlan("dit", network, {"name": "rectified_flow"}, "velocity_to_data", "reversed_t")


def from_sit(path: Path | str, config: Config = "") -> PlannedModel:
    """Read a network of willisma/SiT that predicts the velocity of its linear path, as the published one.

    Its time s runs from noise to data: ``x_s = s x0 + (1 - s) eps``, the network is told s itself, in [0, 1], and
    answers ``x0 - eps``; here t = 1 - s. Half of the published one's outputs are never read, and left out.

    Args:
        path: As of ``from_dit``; no tensor tells the two projects apart.
        config: As of ``from_dit``; and the flags ``--path-type Linear`` and ``--prediction velocity`` of its training,
            of which no others are supported.

    Returns:
        The model, in evaluation mode, of latents times 0.18215, on ``RectifiedFlow``.

    Raises:
        ValueError: As ``from_dit``.

    Source: Ma et al. 2024, Sections 2 and 3.
    """
    path = Path(path)
    tensors = _read(path, "willisma/SiT")
    plan = plan_sit(tensors, config, path=path)
    side, channels = plan.network["patch_size"], plan.network["in_channels"]
    for leaf in ("weight", "bias"):
        # the values of a patch are ordered [row, column, channel]
        every = tensors[f"final_layer.linear.{leaf}"].unflatten(0, (side**2, -1))
        tensors[f"final_layer.linear.{leaf}"] = every[:, :channels].flatten(0, 1)
    return _load(plan, tensors, path)


def _read(path: Path, project: str) -> dict[str, Tensor]:
    held: Any = read_checkpoint(path)
    if isinstance(held, Mapping) and "ema" in held:
        held = held["ema"]
    tensors = strip_prefix(as_tensors(held, path=path))
    check_project(tensors, "blocks.0.adaLN_modulation.1.weight", project, path=path)
    return tensors


def _plan_network(tensors: Mapping[str, Tensor], settings: Settings, path: Path) -> dict[str, Any]:
    """The network's options."""
    try:
        network, places = _options_of(tensors), tensors["pos_embed"].squeeze(0)
    except (IndexError, KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"checkpoint {path} has tensors of shapes that no DiT has; fetch it again") from error
    channels, rows = network["channels"], math.isqrt(len(places))
    # half precision keeps three digits, and the row before the column differs by more
    if len(places) != rows**2 or (places.float() - sincos_positions(rows, rows, channels)).abs().max() > 0.01:
        raise ValueError(
            f"checkpoint {path} has positions of {len(places)} patches that are not the sines and cosines of a square; "
            "such a network is not supported"
        )
    if channels not in _HEADS and "num_heads" not in settings.values:
        raise ValueError(
            f"checkpoint {path} is {channels} wide, which is neither S, B, L nor XL; set "
            "config.source.config='--num_heads ...'"
        )
    heads = settings.integer("num_heads", _HEADS.get(channels), least=1)
    return network | {"image_size": rows * network["patch_size"], "num_heads": heads}


def _options_of(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The options that shapes of tensors show."""
    channels, in_channels, side, _ = tensors["x_embedder.proj.weight"].shape
    outputs = len(tensors["final_layer.linear.weight"]) // side**2
    return {
        "in_channels": in_channels,
        "patch_size": side,
        "channels": channels,
        "depth": 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blocks.")),
        "mlp_ratio": len(tensors["blocks.0.mlp.fc1.weight"]) / channels,
        "learned_variance": outputs == 2 * in_channels,
        # the last row is that of no class
        "num_classes": len(tensors["y_embedder.embedding_table.weight"]) - 1,
        "null_condition": True,
        "embedding": "cos_first",
        "embedding_dim": tensors["t_embedder.mlp.0.weight"].shape[1],
    }


def _load(plan: ModelPlan, tensors: Mapping[str, Tensor], path: Path) -> PlannedModel:
    own = {name: tensor for name, tensor in tensors.items() if name != "pos_embed"}
    model = plan.load(own, dit_sources, path=path)
    model.of_latents, model.latent_scale = True, LATENT_SCALE
    model.notes = notes_on_types(tensors, path=path)
    return model
