"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion, and the latter's classifiers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from sde_lib import make_sde

from ...backbones import (
    ADM,
    AttentionBlock,
    Downsample,
    EncoderClassifier,
    ResBlock,
)
from ...backbones.blocks.levels import UpLevel
from ...wrappers.noisy_classifier import NoisyClassifier
from ..shared.plan import PlannedModel
from ..shared.renaming import (
    TRANSPOSED,
    Source,
    attention_layouts,
    fused_attention,
    load_renamed,
    pointwise,
    rename_blocks,
    sources_of,
)
from ..shared.settings import Settings
from ..shared.tensors import read_tensors, strip_prefix
from .settings import (
    Config,
    Project,
    plan_classifier,
    plan_guided,
)

_LEAVES = {
    ResBlock: {
        "norm1": "in_layers.0",
        "conv1": "in_layers.2",
        "project": "emb_layers.1",
        "norm2": "out_layers.0",
        "conv2": "out_layers.3",
        "skip": "skip_connection",
    },
    AttentionBlock: {"proj": "proj_out"},
    Downsample: {"conv": "op"},
}
_LAYERS = {
    "embed.linear1": "time_embed.0",
    "embed.linear2": "time_embed.2",
    "embed.class_table": "label_emb",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool.qkv": "out.2.qkv_proj",
    "pool.proj": "out.2.c_proj",
}


def _places(network: ADM | EncoderClassifier) -> dict[str, str]:
    """Their name of each block: one counter runs down, another up."""
    places = {
        "middle.block1": "middle_block.0",
        "middle.attention": "middle_block.1",
        "middle.block2": "middle_block.2",
    }
    count = 1
    for i in range(len(network.down)):
        for j in range(network.num_res_blocks):
            places[f"down.{i}.blocks.{j}"] = f"input_blocks.{count + j}.0"
            places[f"down.{i}.attention.{j}"] = f"input_blocks.{count + j}.1"
        places[f"down.{i}.resample"] = f"input_blocks.{count + network.num_res_blocks}.0"
        count += network.num_res_blocks + 1
    count = 0
    for i, level in reversed(list(enumerate(network.up))):
        for j in range(network.num_res_blocks + 1):
            places[f"up.{i}.blocks.{j}"] = f"output_blocks.{count}.0"
            places[f"up.{i}.attention.{j}"] = f"output_blocks.{count}.1"
            count += 1
        assert isinstance(level, UpLevel)
        places[f"up.{i}.resample"] = f"output_blocks.{count - 1}.{2 if len(level.attention) else 1}"
    return places


def guided_sources(network: ADM | EncoderClassifier, *, new_attention_order: bool = False) -> dict[str, Source]:
    """Map a network's tensors to a file of guided-diffusion or improved-diffusion.

    Args:
        network: Our network.
        new_attention_order: The rows of ``qkv`` are [(q, k, v), head, channel] there too, not
            [head, (q, k, v), channel].
    """
    order = (0, 1, 2) if new_attention_order else (1, 0, 2)
    names = rename_blocks(network, _places(network), _LEAVES, _LAYERS)
    layouts = attention_layouts(network, lambda heads: fused_attention(heads, order, 1))
    names["pool.position"] = "out.2.positional_embedding"
    layouts |= {"pool.position": TRANSPOSED, "pool.qkv.weight": pointwise(1), "pool.proj.weight": pointwise(1)}
    return sources_of(network, names, layouts)


def from_guided_diffusion(path: Path | str, config: Config, *, project: Project = "guided") -> PlannedModel:
    """Read a network of guided-diffusion (Dhariwal & Nichol 2021) or improved-diffusion (Nichol & Dhariwal 2021).

    Args:
        path: The ``.pt`` that the project saved, ``ema_0.9999_*.pt`` rather than ``model*.pt``.
        config: What the file does not say, in the project's own names: flags as its README gives them
            (``"--image_size 64 --num_channels 192 ..."``), the same as a mapping or in a JSON file, or the arguments
            of its ``UNetModel`` (told by ``model_channels``; ``attention_resolutions`` are then factors) and of its
            diffusion (``steps``, ``noise_schedule``, ...). Flags of training and sampling alone are passed over:
            ``timestep_respacing`` is a sampler's number of steps here.
        project: "guided" or "improved", whose defaults fill in what the config leaves out.

    Returns:
        The model, in evaluation mode, of data in [-1, 1]. Networks without residual resampling are ``UNet``s.

    Raises:
        ValueError: In one line: the file or the config cannot be read, or they contradict each other.
    """
    path = Path(path)
    tensors = strip_prefix(read_tensors(path))
    _check_project(tensors, path)
    table = tensors.get("label_emb.weight")
    plan = plan_guided(config, project=project, num_classes=None if table is None else len(table))
    order = Settings(config).flag("use_new_attention_order", False)
    model = plan.build()
    backbone = model.backbone
    assert isinstance(backbone, ADM)
    load_renamed(backbone, tensors, guided_sources(backbone, new_attention_order=order), path=path)
    return model


def from_improved_diffusion(path: Path | str, config: Config) -> PlannedModel:
    """Read a network of improved-diffusion: ``from_guided_diffusion`` with that project's defaults."""
    return from_guided_diffusion(path, config, project="improved")


def _check_project(tensors: Mapping[str, Tensor], path: Path) -> None:
    if "input_blocks.0.0.weight" not in tensors or "time_embed.0.weight" not in tensors:
        raise ValueError(
            f"checkpoint {path} is of another project than guided-diffusion or improved-diffusion: "
            f"it has no input_blocks.0.0.weight, but {next(iter(tensors))}; check the source"
        )


def from_guided_classifier(path: Path | str, config: Config) -> NoisyClassifier:
    """Read a classifier of noisy images of guided-diffusion.

    Args:
        path: The ``.pt`` that the project saved.
        config: Flags of ``classifier_sample.py`` (``classifier_depth``, ``classifier_width``, ...), or the arguments
            of its ``EncoderUNetModel``, as text, mapping or JSON file; see ``from_guided_diffusion``. Flags of the
            diffusion model that stand among them are passed over.

    Returns:
        The classifier, in evaluation mode.

    Raises:
        ValueError: In one line: the file or the config cannot be read, or they contradict each other.
    """
    path = Path(path)
    tensors = strip_prefix(read_tensors(path))
    _check_project(tensors, path)
    plan = plan_classifier(config)
    backbone = EncoderClassifier(**plan.network)
    order = Settings(config).flag("use_new_attention_order", False)
    sources = guided_sources(backbone, new_attention_order=order)
    load_renamed(backbone, tensors, sources, path=path)
    return NoisyClassifier(backbone, make_sde(**plan.sde), time_input=plan.time_input).eval()
