"""Diffusion transformers in folders of diffusers, ``DiTTransformer2DModel``, read without it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...backbones import DiT
from ..diffusers.files import SCHEDULER, find_folder, read_weights
from ..diffusers.names import swapped_halves
from ..diffusers.settings import PREDICTIONS, SCHEDULERS, plan_sde
from ..shared.plan import ModelPlan, PlannedModel
from ..shared.renaming import Source, sources_of, thirds
from ..shared.settings import Config, Settings, read_json
from ..shared.tensors import notes_on_types
from .importer import LATENT_SCALE

# its name since diffusers 0.28, and the one that the published files say
KINDS = ("DiTTransformer2DModel", "Transformer2DModel")
_EMBEDDERS = re.compile(r"transformer_blocks\.(\d+)\.norm1\.emb\.(.+)")
_FIRST = "transformer_blocks.0.norm1.emb"
_PLACES = {
    "patches": "pos_embed.proj", "embed.linear1": f"{_FIRST}.timestep_embedder.linear_1",
    "embed.linear2": f"{_FIRST}.timestep_embedder.linear_2",
    "embed.class_table": f"{_FIRST}.class_embedder.embedding_table",
    "last.modulate": "proj_out_1", "last.linear": "proj_out_2",
}  # fmt: skip
_INNER = {
    "attention.qkv": "attn1.to_q,attn1.to_k,attn1.to_v", "attention.proj": "attn1.to_out.0",
    "linear1": "ff.net.0.proj", "linear2": "ff.net.2", "modulate": "norm1.linear",
}  # fmt: skip
# of older classes, which other settings of theirs make another network
_OTHERS_HAVE = {
    "attention_type": "default", "caption_channels": None, "cross_attention_dim": None, "double_self_attention": False,
    "interpolation_scale": (None, 1.0), "num_vector_embeds": None, "only_cross_attention": False,
    "use_additional_conditions": (None, False), "use_linear_projection": False,
}  # fmt: skip


def plan_diffusers_dit(transformer: Mapping[str, Any], scheduler: Config) -> ModelPlan:
    """Plan a model from the settings of a pipeline.

    Args:
        transformer: What ``transformer/config.json`` holds; settings that are left out have the defaults of the class.
        scheduler: What ``scheduler/scheduler_config.json`` holds, the path of such a file, or flags.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a model that is not supported.
    """
    said = Settings({name: value for name, value in transformer.items() if not name.startswith("_")})
    said.refuse_unless(
        activation_fn="gelu-approximate",
        attention_bias=True,
        dropout=0.0,
        norm_elementwise_affine=False,
        norm_type="ada_norm_zero",
        **_OTHERS_HAVE,
    )
    num_heads, in_channels = said.integer("num_attention_heads", 16, least=1), said.integer("in_channels", 4, least=1)
    out_channels = in_channels if said.take("out_channels") is None else said.integer("out_channels")
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"{KINDS[0]} must have as many out_channels as in_channels={in_channels}, or twice as many with a learned "
            f"variance, got {out_channels}; only such models are supported"
        )
    network = {
        "image_size": said.integer("sample_size", 32, least=1),
        "in_channels": in_channels,
        "patch_size": said.integer("patch_size", 2, least=1),
        "channels": num_heads * said.integer("attention_head_dim", 72, least=1),
        "depth": said.integer("num_layers", 28, least=1),
        "num_heads": num_heads,
        "learned_variance": out_channels == 2 * in_channels,
        "num_classes": said.integer("num_embeds_ada_norm", 1000, least=1),
        "null_condition": True,
        "mlp_norm_eps": said.number("norm_eps", 1e-5),
        # its frequencies, whose halves are in the other order there
        "embedding": "sin_first",
    }
    # float32 has no need of the one, and norms of groups are of other networks
    said.ignore(("norm_num_groups", "upcast_attention"))
    said.finish()
    settings = Settings(scheduler)
    settings.choice("_class_name", "DDIMScheduler", [name for name in SCHEDULERS if name != "ScoreSdeVeScheduler"])
    prediction = settings.choice("prediction_type", "epsilon", tuple(PREDICTIONS))
    sde = plan_sde(settings)
    return ModelPlan("dit", network, sde, parameterization=PREDICTIONS[prediction], time_input="index")


def diffusers_dit_sources(network: DiT) -> dict[str, Source]:
    """Map a network's tensors to the state dict of ``DiTTransformer2DModel``, its embedders once."""
    blocks = {f"blocks.{i}": f"transformer_blocks.{i}" for i in range(len(network.blocks))}
    layouts = {
        "attention.qkv.weight": thirds(),
        "attention.qkv.bias": thirds(),
        "embed.linear1.weight": swapped_halves,
    }
    return sources_of(network, _PLACES | blocks, _INNER, lambda _: layouts)


def from_diffusers_dit(name: Path | str, config: Config | None = None) -> PlannedModel:
    """Read a ``DiTTransformer2DModel`` with a scheduler of betas, as the function that diffusers computes.

    The class embeds time by the frequencies 10000^(-i / 127) and has an epsilon of 1e-5 in half of its norms, where
    facebookresearch/DiT, whose weights are the published ones, has 10000^(-i / 128) and 1e-6: what is read here answers
    as diffusers does, and ``from_dit`` as the network was trained.

    Args:
        name: A folder, or a name on the Hugging Face hub such as ``facebook/DiT-XL-2-256``: of a pipeline, with the
            network in ``transformer/`` and the scheduler in ``scheduler/``, of which the ``vae`` is read elsewhere; or
            of the network alone, whose scheduler is looked for beside it.
        config: The scheduler's settings where no file says them: a mapping, the path of a JSON file, or flags. Without,
            they are DDPM's: linear betas, predicting eps.

    Returns:
        The model, in evaluation mode, of latents times the number that the ``vae`` beside it says.

    Raises:
        ValueError: In one line: a file is missing, cannot be read or contradicts another, the network is of another
            kind, or its blocks have embedders of their own.
    """
    folder = find_folder(name, ("transformer/", ""))
    transformer = folder / "transformer" if (folder / "transformer").is_dir() else folder
    said, notes = read_json(transformer / "config.json", f"{KINDS[0]}'s config"), ()
    kind = said.get("_class_name", KINDS[0])
    if kind not in KINDS:
        raise ValueError(f"the network of {transformer} must be a {KINDS[0]}, got {kind}; it is not supported")
    beside = transformer.resolve().parent
    places = (transformer / SCHEDULER, beside / "scheduler" / SCHEDULER)
    file = next((place for place in places if place.is_file()), None)
    if file is not None and config is not None:
        raise ValueError(f"config {str(config)!r} is of no use: {file} says all settings; leave it out")
    scheduler: Config | None = config if file is None else read_json(file, "scheduler's config")
    if scheduler is None:
        scheduler = {}
        notes = (
            f"no file says the scheduler of {folder}: DDPM's is assumed, 1000 linear betas from 0.0001 to 0.02, "
            "predicting eps; config.source.config='--beta_schedule ... --prediction_type ...' says otherwise",
        )
    plan = plan_diffusers_dit(said, scheduler)
    path, tensors = read_weights(transformer)
    model = plan.load(_with_embedders_once(tensors, path), diffusers_dit_sources, path=path)
    notes += (
        "read as diffusers computes it, whose embedding of time has other frequencies than facebookresearch/DiT's; "
        "--source dit reads that project's .pt as it was trained",
    )
    model.notes, model.of_latents, model.latent_scale = notes + notes_on_types(tensors, path=path), True, LATENT_SCALE
    if (beside / "vae").is_dir():
        vae = Settings(read_json(beside / "vae" / "config.json", "AutoencoderKL's config"))
        model.latent_scale = vae.number("scaling_factor", LATENT_SCALE)
    return model


def _with_embedders_once(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """The tensors, of which each block has those of the embedders there; and without the table of positions."""
    kept = {}
    for name, tensor in tensors.items():
        found = _EMBEDDERS.fullmatch(name)
        first = f"{_FIRST}.{found[2]}" if found else name
        if found is None or found[1] == "0" or first not in tensors:
            kept[name] = tensor
        elif not torch.equal(tensor, tensors[first]):
            raise ValueError(
                f"checkpoint {path} has other embedders in its block {found[1]} than in its first ({found[2]}), as a "
                "training by diffusers leaves them; such a network is not supported"
            )
    return {name: tensor for name, tensor in kept.items() if name != "pos_embed.pos_embed"}
