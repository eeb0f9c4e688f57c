"""Checkpoints of OpenAI's improved-diffusion and guided-diffusion, and the latter's classifiers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from ...backbones import ADM, EncoderClassifier
from ..shared.plan import PlannedClassifier, PlannedModel
from ..shared.renaming import (
    Source,
    fused_attention,
    level_blocks,
    load_renamed,
    pointwise,
    sources_of,
    transformer_layouts,
    transformer_names,
    transposed,
)
from ..shared.settings import Config, Settings
from ..shared.tensors import check_project, read_tensors
from .settings import Project, plan_classifier, plan_guided

_INNER = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "project": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "skip": "skip_connection",
    "proj": "proj_out",
    "position": "positional_embedding",
}
_PLACES = {
    "embed.linear1": "time_embed.0",
    "embed.linear2": "time_embed.2",
    "embed.class_table": "label_emb",
    "conv_in": "input_blocks.0.0",
    "middle.block1": "middle_block.0",
    "middle.attention": "middle_block.1",
    "middle.cross_attention": "middle_block.1",
    "middle.block2": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool": "out.2",
    "pool.qkv": "out.2.qkv_proj",
    "pool.proj": "out.2.c_proj",
}
_POOL = {"pool.position": transposed, "pool.qkv.weight": pointwise(1), "pool.proj.weight": pointwise(1)}


def guided_sources(
    network: ADM | EncoderClassifier, *, new_attention_order: bool = False, convolutions: bool = True
) -> dict[str, Source]:
    """Map a network's tensors to a file of guided-diffusion or improved-diffusion, or of latent-diffusion.

    Args:
        network: Our network.
        new_attention_order: ``qkv`` is in the order [(q, k, v), head, channel] there too, not
            [head, (q, k, v), channel].
        convolutions: The projections into and out of transformers are convolutions of kernel 1 there.
    """
    places, per_level = dict(_PLACES), network.num_res_blocks + 1
    names = dict(network.named_modules())
    # blocks are counted on the way down, after the first convolution, and again on the way up
    for name, side, level, kind, index in level_blocks(network):
        index = network.num_res_blocks if kind == "resample" else index
        kind = kind.removeprefix("cross_")  # a transformer stands in its place
        if side == "down":
            places[name] = f"input_blocks.{1 + level * per_level + index}.{int(kind == 'attention')}"
            places[f"{name}.conv"] = f"{places[name]}.op"  # of resampling by a convolution
        else:
            # what resamples stands behind the level's last blocks
            attends = any(f"up.{level}.{one}.0" in names for one in ("attention", "cross_attention"))
            within = {"blocks": 0, "attention": 1, "resample": 1 + attends}[kind]
            places[name] = f"output_blocks.{(len(network.up) - 1 - level) * per_level + index}.{within}"
    order = (0, 1, 2) if new_attention_order else (1, 0, 2)
    depth = network.options.get("transformer_depth", 0)
    inner = _INNER | transformer_names(depth)
    layouts = transformer_layouts(depth, convolutions=convolutions) | _POOL
    return sources_of(network, places, inner, lambda heads: fused_attention(heads, order, 1) | layouts)


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
    return _score_model(_read(path, "guided-diffusion or improved-diffusion"), path, config, project)


def _read(path: Path, project: str) -> dict[str, Tensor]:
    tensors = read_tensors(path)
    check_project(tensors, "input_blocks.0.0.weight", project, path=path)
    return tensors


def _score_model(tensors: Mapping[str, Tensor], path: Path, config: Config, project: Project) -> PlannedModel:
    table = tensors.get("label_emb.weight")
    plan = plan_guided(config, project=project, num_classes=None if table is None else len(table))
    return plan.load(tensors, _sources_for(config), path=path)


def _sources_for(
    config: Config, *, of_classifier: bool = False
) -> Callable[[ADM | EncoderClassifier], Mapping[str, Source]]:
    settings = Settings(config)
    # their flags are of the score model: a classifier is built by them without
    by_flags = "model_channels" not in settings.values
    new = settings.flag("use_new_attention_order", False) and not (of_classifier and by_flags)
    return partial(guided_sources, new_attention_order=new)


def from_improved_diffusion(path: Path | str, config: Config) -> PlannedModel:
    """Read a network of improved-diffusion: ``from_guided_diffusion`` with that project's defaults."""
    return from_guided_diffusion(path, config, project="improved")


def from_guided_classifier(path: Path | str, config: Config) -> PlannedClassifier:
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
    return _classifier(_read(path, "guided-diffusion"), path, config)


def _classifier(tensors: Mapping[str, Tensor], path: Path, config: Config) -> PlannedClassifier:
    classifier = PlannedClassifier(plan_classifier(config)).eval()
    network = classifier.backbone
    assert isinstance(network, EncoderClassifier)
    load_renamed(network, tensors, _sources_for(config, of_classifier=True)(network), path=path)
    return classifier


def from_guided_file(path: Path | str, config: Config) -> PlannedModel | PlannedClassifier:
    """Read a file of guided-diffusion, whichever of the two it holds.

    See ``from_guided_diffusion`` and ``from_guided_classifier``.
    """
    path = Path(path)
    tensors = _read(path, "guided-diffusion")
    if f"{_PLACES['pool.qkv']}.weight" in tensors:
        return _classifier(tensors, path, config)
    return _score_model(tensors, path, config, "guided")
