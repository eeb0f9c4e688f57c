"""The backbone of ``config.model``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from data import AnyKind, ImageKind, VectorKind, one_or_pair
from models.backbones import Backbone
from models.pretrained import BACKBONES, default_options
from runtime.registry import choices_message

from .conditions import build_conditions
from .config import Config, plain
from .config.keys import STAND_INS
from .config.left_out import check_parts, leaves_out
from .latents.first_stage import sees_latents

# keys of config.model that are options of backbones, of the same name
SHARED = (
    "attention_resolutions", "channel_mult", "channels", "dropout", "embedding", "head_channels", "input_frequencies",
    "learned_variance", "norm_eps", "norm_groups", "num_heads", "num_res_blocks", "scale_shift_norm",
    "symmetric_downsample",
)  # fmt: skip
# options that follow from the data; config.model.network says them where a model must be built without
OF_DATA = (
    "cond_channels", "cond_pooled", "cond_tokens", "cond_values", "cond_words", "given_frames", "image_size",
    "in_channels", "max_words", "num_classes", "num_dims", "num_frames", "num_levels",
)  # fmt: skip
DERIVED = "outputs_per_channel"


def is_classifier(config: Config) -> bool:
    """Tell a classifier of noisy images from a score model."""
    return config.model.get("backbone", "unet") == "classifier"


def is_first_stage(config: Config) -> bool:
    """Tell an autoencoder from a score model."""
    return config.model.get("backbone", "unet") == "autoencoder"


def network_defaults(backbone: str) -> dict[str, Any]:
    """A backbone's options and their defaults; ``inspect.Parameter.empty`` where there is none."""
    if backbone == "checkpoint":
        raise ValueError(
            "config.model.backbone=checkpoint stands for what was imported into a work directory; run --mode import"
        )
    if backbone == "control":
        raise ValueError("config.model.backbone=control stands for the network of control.base, got none; set it")
    if backbone == "teacher":
        raise ValueError(
            "config.model.backbone=teacher stands for the network of distillation.teacher, got none; set it"
        )
    if backbone not in BACKBONES:
        raise ValueError(choices_message("backbone", backbone, [*sorted(BACKBONES), *STAND_INS]))
    return default_options(backbone)


def _shape_arguments(backbone: str, kind: AnyKind, outputs_per_channel: int) -> dict[str, Any]:
    """A backbone's options that the shape of the data sets.

    Raises:
        ValueError: If it is of images, and these are vectors, or the other way round.
    """
    shape, of_vectors = "x".join(map(str, kind.sample_shape)), isinstance(kind, VectorKind)
    if of_vectors != (backbone in ("mlp", "prior_transformer")):
        if of_vectors and backbone == "classifier":
            raise ValueError(f"backbone classifier is of images, got vectors of {shape} numbers; take data of images")
        if of_vectors:
            raise ValueError(
                f"backbone {backbone} is of images, got vectors of {shape} numbers; set model.backbone=mlp"
            )
        raise ValueError(
            f"backbone {backbone} is of vectors, got images of {shape}; set model.backbone to adm, dit, ncsnpp or unet"
        )
    if isinstance(kind, VectorKind):
        return {"num_dims": kind.sample_shape[0]}
    channels, *frames, height, width = kind.sample_shape
    of_frames = bool(frames) and backbone != "autoencoder"
    if of_frames != (backbone == "space_time"):
        ours, fix = ("clips", "images") if frames else ("images", "clips")
        other = "space_time" if frames else "adm, dit, ncsnpp or unet"
        raise ValueError(f"backbone {backbone} is of {fix}, got {ours} of {shape}; set model.backbone={other}")
    of_clips = {"num_frames": frames[0]} if of_frames else {}
    size = one_or_pair(height, width)
    return {"image_size": size, "in_channels": channels, DERIVED: outputs_per_channel, **of_clips}


def _condition_arguments(config: Config, kind: AnyKind, known: Mapping[str, Any]) -> dict[str, Any]:
    """A backbone's options that its conditions set.

    Raises:
        ValueError: If it cannot be told them, or leaves out what it is not told.
    """
    conditions, model = build_conditions(config, kind), config.model
    options = conditions.network_options
    if conditions.images and sees_latents(config):
        raise ValueError(
            f"a model of latents can be told classes and values, got data.condition={','.join(config.data.condition)}, "
            "an image; leave it out, or data.first_stage"
        )
    for name in [name for name, size in options.items() if size and name not in known]:
        what = {"cond_channels": "an image", "cond_values": "values"}.get(name, "captions")
        raise ValueError(
            f"backbone {model.backbone} cannot be told {what}, which data.condition="
            f"{','.join(config.data.condition)} is; leave it out, or set model.backbone to adm, dit, ncsnpp or unet"
        )
    if model.get("condition_dropout", 0.0) and not conditions.any:
        raise ValueError(
            f"model.condition_dropout={model.condition_dropout:g} needs a condition, got none; set "
            "model.class_conditional or data.condition, or leave it at 0"
        )
    check_parts(config, conditions)
    if model.get("condition_noise_t", 0.0) and isinstance(kind, ImageKind) and kind.of_clips:
        raise ValueError(
            f"model.condition_noise_t={model.condition_noise_t:g} is of images, got clips, whose given frames are "
            "clean; leave it at 0"
        )
    if model.get("condition_noise_t", 0.0) and not conditions.images:
        raise ValueError(
            f"model.condition_noise_t={model.condition_noise_t:g} needs a condition image, got none; set "
            "data.condition=lowres, or leave it at 0"
        )
    told = {name: size for name, size in options.items() if name in known}
    return {**told, **({"null_condition": True} if leaves_out(config) else {})}


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
    known = network_defaults(backbone)
    arguments = {key: plain(model[key]) for key in SHARED if key in known}
    if "head_channels" in arguments:
        arguments["head_channels"] = arguments["head_channels"] or None
    if is_classifier(config) and not model.class_conditional:
        raise ValueError("backbone classifier is of classes, got model.class_conditional=False; set it to True")
    if model.class_conditional and "num_classes" not in known:
        raise ValueError(f"backbone {backbone} is told no class, got model.class_conditional=True; set it to False")
    if (is_first_stage(config) or is_classifier(config)) and sees_latents(config):
        raise ValueError(f"backbone {backbone} is of pixels, got a first_stage; leave it out")
    arguments |= _shape_arguments(backbone, kind, outputs_per_channel)
    if DERIVED not in known:
        arguments.pop(DERIVED, None)
    of_data = {"num_classes": kind.num_classes if model.class_conditional else None, "num_levels": kind.seen_levels}
    arguments |= {key: value for key, value in of_data.items() if key in known}
    arguments |= _condition_arguments(config, kind, known)
    free = sorted(known.keys() - {*SHARED, DERIVED})
    for key, value in model.get("network", {}).items():
        # the name that it had
        key = "null_condition" if key == "null_class" else key
        if key not in free:
            raise ValueError(choices_message(f"key of config.model.network for backbone {backbone!r}:", key, free))
        value = plain(value)
        if key in OF_DATA and value != (told := arguments.get(key, known[key])):
            raise ValueError(
                f"the model has {key} {value}, but {config.data.dataset} has {told}; use images such as those that it "
                "was trained on, and data.condition and data.text_encoder as it was"
            )
        arguments[key] = value
    return BACKBONES[backbone](**arguments)


def model_in_full(model: Mapping[str, Any]) -> dict[str, Any]:
    """``config.model`` as a work directory has it, with the keys that later versions added: as they were before."""
    options = network_defaults(model.get("backbone", "unet"))
    shared = {key: options[key] for key in SHARED if key in options and key not in model}
    own = {"network": {}, "time_input": "auto", "data_std": 0.5, "learned_variance": False, "dequantizer": False}
    own |= {"answers": "posterior_mean", "condition_dropout": 0.0, "part_dropout": "", "condition_noise_t": 0.0}
    return own | {"class_conditional": False} | shared | {key: plain(value) for key, value in model.items()}
