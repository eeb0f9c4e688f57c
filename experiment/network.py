"""The backbone of ``config.model``, and the config of a network that came from elsewhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from data import AnyKind, VectorKind, one_or_pair
from models.pretrained import BACKBONES, Backbone, ModelPlan
from runtime.files import one_line
from runtime.registry import choices_message
from sde_lib import sde_defaults

from .config import Config, flatten
from .workdir import read_config

# keys of config.model that are options of backbones, of the same name
_SHARED = (
    "attention_resolutions", "channel_mult", "channels", "dropout", "embedding", "head_channels", "input_frequencies",
    "learned_variance", "norm_eps", "norm_groups", "num_heads", "num_res_blocks", "scale_shift_norm",
    "symmetric_downsample",
)  # fmt: skip
# options that follow from the data; config.model.network says them where a model must be built without
_OF_DATA = ("image_size", "in_channels", "num_classes", "num_dims")
_DERIVED = "outputs_per_channel"


def _defaults(backbone: str) -> dict[str, Any]:
    """A backbone's options and their defaults; ``inspect.Parameter.empty`` where there is none."""
    if backbone == "checkpoint":
        raise ValueError(
            "config.model.backbone=checkpoint stands for what was imported into a work directory; run --mode import"
        )
    if backbone not in BACKBONES:
        raise ValueError(choices_message("backbone", backbone, [*sorted(BACKBONES), "checkpoint"]))
    parameters = inspect.signature(BACKBONES[backbone].__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.name != "self"}


def _plain(value: Any) -> Any:
    return tuple(_plain(one) for one in value) if isinstance(value, (list, tuple)) else value


def _shape_arguments(backbone: str, kind: AnyKind, outputs_per_channel: int) -> dict[str, Any]:
    """A backbone's options that the shape of the data sets.

    Raises:
        ValueError: If it is of images, and these are vectors, or the other way round.
    """
    shape, of_vectors = "x".join(map(str, kind.image_shape)), isinstance(kind, VectorKind)
    if of_vectors != (backbone == "mlp"):
        if of_vectors:
            raise ValueError(
                f"backbone {backbone} is of images, got vectors of {shape} numbers; set model.backbone=mlp"
            )
        raise ValueError(
            f"backbone mlp is of vectors, got images of {shape}; set model.backbone to adm, ncsnpp or unet"
        )
    if isinstance(kind, VectorKind):
        return {"num_dims": kind.image_shape[0]}
    channels, height, width = kind.image_shape
    return {"image_size": one_or_pair(height, width), "in_channels": channels, _DERIVED: outputs_per_channel}


def build_backbone(config: Config, kind: AnyKind, *, outputs_per_channel: int) -> Backbone:
    """The backbone of ``config.model`` for a kind of data, with new weights.

    Args:
        config: The config; its ``model.network`` holds the backbone's options that ``model`` has no key for.
        kind: The data that it is for.
        outputs_per_channel: Outputs for each channel of the data.

    Raises:
        ValueError: If an option is unknown or impossible, or the network is of other data.
    """
    model = config.model
    backbone = model.get("backbone", "unet")
    known = _defaults(backbone)
    arguments = {key: _plain(model[key]) for key in _SHARED if key in known}
    if "head_channels" in arguments:
        arguments["head_channels"] = arguments["head_channels"] or None
    arguments |= _shape_arguments(backbone, kind, outputs_per_channel)
    arguments["num_classes"] = kind.num_classes if model.class_conditional else None
    free = sorted(known.keys() - {*_SHARED, _DERIVED})
    for key, value in model.get("network", {}).items():
        if key not in free:
            raise ValueError(choices_message(f"key of config.model.network for backbone {backbone!r}:", key, free))
        value = _plain(value)
        if key in _OF_DATA and value != arguments[key]:
            raise ValueError(
                f"the model has {key} {value}, but {config.data.dataset} has {arguments[key]}; use images such as "
                "those that it was trained on"
            )
        arguments[key] = value
    return BACKBONES[backbone](**arguments)


def sections_of(plan: ModelPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.model`` and ``config.sde`` in full for a plan: from them alone the same model is built again."""
    options = _defaults(plan.backbone) | plan.network
    model: dict[str, Any] = {
        "backbone": plan.backbone,
        "parameterization": plan.parameterization,
        "noise_input": plan.noise_input,
        "data_std": 0.5,
        "dequantizer": False,
        "class_conditional": options["num_classes"] is not None,
        **{key: _plain(options[key]) for key in _SHARED if key in options},
    }
    if "head_channels" in model:
        model["head_channels"] = model["head_channels"] or 0
    own = sorted(options.keys() - {*_SHARED, _DERIVED})
    model["network"] = {key: _plain(options[key]) for key in own}
    return model, sde_defaults(plan.sde["name"]) | plan.sde


def config_of_checkpoint(config: Config, plan: ModelPlan, checkpoint: str) -> Config:
    """The config of an imported model: the given one, with what it leaves to the checkpoint filled in.

    Args:
        config: The config. Where ``model.backbone`` is "checkpoint", it need not say anything of ``model`` and ``sde``.
        plan: What the imported model is.
        checkpoint: Its name, for the message.

    Returns:
        A new config, locked.

    Raises:
        ValueError: If the config says otherwise than the checkpoint: key, the one's value and the other's.
    """
    of_model, of_sde = sections_of(plan)
    leaves = config.model.get("backbone", "unet") == "checkpoint"
    said_model, said_sde = config.model.to_dict(), config.sde.to_dict()
    if leaves:
        said_model.pop("backbone")
    else:
        # what is left out has its default
        own = {"backbone": "unet"} | said_model
        options = {key: value for key, value in _defaults(own["backbone"]).items() if key in of_model["network"]}
        own["network"] = {k: v for k, v in options.items() if k not in _OF_DATA} | own.get("network", {})
        said_model, said_sde = own, sde_defaults(said_sde["name"]) | said_sde
    if said_model.get("noise_input") == "auto":
        auto = "t999" if plan.build_sde().table_size is None else "index"
        said_model["noise_input"] = "edm" if plan.parameterization == "edm" else auto
    _refuse_differences("model.", said_model, of_model, checkpoint, leaves=leaves)
    _refuse_differences("sde.", said_sde, of_sde, checkpoint, leaves=leaves)
    if not leaves:
        return config
    return _with_sections(config, of_model, of_sde)


def _refuse_differences(
    prefix: str, said: Mapping[str, Any], found: Mapping[str, Any], checkpoint: str, *, leaves: bool
) -> None:
    theirs = dict(flatten(dict(found)))
    pairs = dict(flatten(dict(said)))
    # the kind of network, and of SDE, say most
    for key in sorted(pairs, key=lambda key: (key not in ("backbone", "name"), key)):
        # keys that the backbone has no use for say nothing
        known = key in theirs or key.startswith("network.") or prefix == "sde."
        if known and not _alike(pairs[key], theirs.get(key)):
            fix = "leave it out" if leaves else "use a config with model.backbone=checkpoint, as configs/pretrained/ do"
            raise ValueError(
                f"config.{prefix}{key} is {one_line(repr(pairs[key]), 60)}, but checkpoint {checkpoint} has "
                f"{one_line(repr(theirs.get(key)), 60)}; correct it, or {fix}"
            )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _with_sections(config: Config, model: dict[str, Any], sde: dict[str, Any]) -> Config:
    whole = ConfigDict(config.to_dict() | {"model": model, "sde": sde})
    whole.lock()
    return whole


def model_in_full(model: Mapping[str, Any]) -> dict[str, Any]:
    """``config.model`` as a work directory has it, with the keys that later versions added: as they were before."""
    options = _defaults(model.get("backbone", "unet"))
    shared = {key: options[key] for key in _SHARED if key in options and key not in model}
    own = {"network": {}, "noise_input": "auto", "data_std": 0.5, "learned_variance": False, "dequantizer": False}
    return own | {"class_conditional": False} | shared | {key: _plain(value) for key, value in model.items()}


def complete_config(config: Config, workdir: Path) -> Config:
    """The config with its "checkpoint" replaced by the model that was imported into a work directory.

    Args:
        config: The config; unchanged where ``model.backbone`` is something else.
        workdir: The work directory.

    Returns:
        A config of which models are built as of any. What it said itself of ``model`` and ``sde`` stays, for the work
        directory's own check.

    Raises:
        ValueError: If nothing was imported there.
    """
    if "model" not in config or config.model.get("backbone", "unet") != "checkpoint":
        return config
    saved = read_config(workdir)
    if saved is None or not any((workdir / "checkpoints").glob("step_*")):
        raise ValueError(
            f"{workdir} holds no imported model, for which config.model.backbone=checkpoint stands; run --mode import "
            "first, or pass its --workdir"
        )
    model, sde = saved.get("model"), saved.get("sde")
    if not isinstance(model, dict) or not isinstance(sde, dict) or model.get("backbone") not in BACKBONES:
        raise ValueError(f"{workdir / 'config.json'} is damaged (it says no model); restore it, or import again")
    said = {key: value for key, value in config.model.to_dict().items() if key != "backbone"}
    network = {**model.get("network", {}), **said.get("network", {})}
    whole = {key: _plain(value) for key, value in {**model, **said, "network": network}.items()}
    return _with_sections(config, whole, {**sde, **config.sde.to_dict()})
