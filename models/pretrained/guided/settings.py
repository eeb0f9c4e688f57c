"""Settings of OpenAI's improved-diffusion and guided-diffusion, as flags or as arguments of their classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ...parameterization import TimeInput
from ..shared.plan import ModelPlan, plan_network
from ..shared.settings import Settings

Project = Literal["guided", "improved"]
Config = Mapping[str, Any] | Path | str

_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
# how a model was trained, is run or is sampled from: none of it changes the model
_NOT_THE_MODEL = (
    "batch_size", "classifier_path", "classifier_scale", "classifier_use_fp16", "clip_denoised", "model_path",
    "num_samples", "rescale_learned_sigmas", "sigma_small", "timestep_respacing", "use_checkpoint", "use_ddim",
    "use_fp16", "use_kl",
)  # fmt: skip
_OF_THE_CLASSIFIER = (
    "classifier_attention_resolutions", "classifier_depth", "classifier_pool", "classifier_resblock_updown",
    "classifier_use_scale_shift_norm", "classifier_width",
)  # fmt: skip
_OF_THE_NETWORK = (
    "attention_resolutions", "channel_mult", "class_cond", "dropout", "learn_sigma", "num_channels",
    "num_head_channels", "num_heads", "num_heads_upsample", "num_res_blocks", "resblock_updown",
    "use_new_attention_order", "use_scale_shift_norm",
)  # fmt: skip


@dataclass(frozen=True)
class ClassifierPlan:
    """A classifier, described by plain values.

    Attributes:
        network: Keyword arguments of ``EncoderClassifier``.
        sde: The SDE's name, under ``name``, and its options.
        time_input: What the network is told of t.
    """

    network: dict[str, Any]
    sde: dict[str, Any]
    time_input: TimeInput


def plan_guided(config: Config, *, project: Project = "guided", num_classes: int | None = None) -> ModelPlan:
    """Plan a model from the settings of guided-diffusion or improved-diffusion.

    Args:
        config: See ``from_guided_diffusion``.
        project: "guided" or "improved": they differ in ``rescale_timesteps``, True by default in the latter.
        num_classes: Classes of the checkpoint's table, for ``class_cond`` without a number; 1000 when None.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings(config)
    by_constructor = "model_channels" in settings
    image_size = settings.integer("image_size", None if by_constructor else 64)
    named = _by_constructor(settings, image_size) if by_constructor else _by_flags(settings, image_size, num_classes)
    head_channels = settings.integer("num_head_channels", -1)
    num_heads = settings.integer("num_heads", 1 if by_constructor else 4)
    network = {
        "image_size": image_size,
        "in_channels": settings.integer("in_channels", 3),
        **named,
        "num_res_blocks": settings.integer("num_res_blocks", None if by_constructor else 2),
        "num_heads": num_heads,
        "head_channels": None if head_channels == -1 else head_channels,
        "dropout": settings.number("dropout", 0.0),
        "scale_shift_norm": settings.flag("use_scale_shift_norm", not by_constructor),
        "resampling": "residual" if settings.flag("resblock_updown", False) else "convolution",
        "symmetric_downsample": True,
        "norm_eps": 1e-5,
        "embedding": "cos_first",
    }
    settings.refuse_unless(num_heads_upsample=(-1, num_heads), conv_resample=True, dims=2)
    settings.ignore((*_NOT_THE_MODEL, *_OF_THE_CLASSIFIER, "use_new_attention_order"))
    parameterization = "x0" if settings.flag("predict_xstart", False) else "eps"
    sde, time_input = _plan_sde(settings, project)
    settings.finish()
    backbone, network = plan_network(network)
    return ModelPlan(backbone, network, sde, parameterization=parameterization, time_input=time_input)


def plan_classifier(config: Config) -> ClassifierPlan:
    """Plan a classifier from the settings of guided-diffusion.

    Args:
        config: See ``from_guided_classifier``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings(config)
    by_constructor = "model_channels" in settings
    image_size = settings.integer("image_size", None if by_constructor else 64)
    network: dict[str, Any]
    if by_constructor:
        prefix = ""
        network = {
            "in_channels": settings.integer("in_channels", 3),
            "channels": settings.integer("model_channels"),
            "num_classes": settings.integer("out_channels"),
            "num_res_blocks": settings.integer("num_res_blocks"),
            "head_channels": settings.integer("num_head_channels"),
            "dropout": settings.number("dropout", 0.0),
            **_levels(settings, image_size, settings.numbers("channel_mult", (1, 2, 4, 8))),
        }
        settings.refuse_unless(conv_resample=True, dims=2)
        settings.ignore(("use_new_attention_order", *_NOT_THE_MODEL, "learn_sigma"))
    else:
        prefix = "classifier_"
        network = {
            "channels": settings.integer("classifier_width", 128),
            "num_res_blocks": settings.integer("classifier_depth", 2),
            "head_channels": 64,
            **_levels(settings, image_size, _published_mult(image_size), "classifier_attention_resolutions"),
        }
        settings.ignore((*_NOT_THE_MODEL, *_OF_THE_NETWORK))
    settings.refuse_unless(**{f"{prefix}pool": "attention"})
    settings.ignore(["predict_xstart"])
    network["image_size"] = image_size
    network["scale_shift_norm"] = settings.flag(f"{prefix}use_scale_shift_norm", not by_constructor)
    residual = settings.flag(f"{prefix}resblock_updown", not by_constructor)
    network["resampling"] = "residual" if residual else "convolution"
    sde, time_input = _plan_sde(settings, "guided")
    settings.finish()
    return ClassifierPlan(network, sde, time_input)


def _plan_sde(settings: Settings, project: Project) -> tuple[dict[str, Any], TimeInput]:
    steps = settings.integer("diffusion_steps", settings.integer("steps", 1000, least=2), least=2)
    sde: dict[str, Any] = {"name": "improved_ddpm", "num_steps": steps}
    if settings.choice("noise_schedule", "linear", ("linear", "cosine")) == "linear":
        # Ho et al.'s ends for 1000 steps, scaled so that any number of steps ends at about the same noise
        scale = 1000 / steps
        sde = {"name": "ddpm", "num_steps": steps, "beta_start": scale * 0.0001, "beta_end": scale * 0.02}
    rescales = settings.flag("rescale_timesteps", project == "improved")
    return sde, "index1000" if rescales and steps != 1000 else "index"


def _by_constructor(settings: Settings, image_size: int) -> dict[str, Any]:
    in_channels = settings.integer("in_channels", 3)
    out_channels = settings.integer("out_channels")
    if out_channels not in (in_channels, 2 * in_channels):
        raise ValueError(
            f"config's out_channels must be {in_channels}, or {2 * in_channels} with a learned variance, "
            f"got {out_channels}; correct it"
        )
    learned = settings.flag("learn_sigma", out_channels == 2 * in_channels)
    if learned != (out_channels == 2 * in_channels):
        raise ValueError(f"config's learn_sigma={learned} contradicts its out_channels={out_channels}; correct one")
    return {
        "channels": settings.integer("model_channels"),
        "learned_variance": learned,
        "num_classes": None if settings.take("num_classes") is None else settings.integer("num_classes"),
        **_levels(settings, image_size, settings.numbers("channel_mult", (1, 2, 4, 8))),
    }


def _by_flags(settings: Settings, image_size: int, num_classes: int | None) -> dict[str, Any]:
    mult = settings.numbers("channel_mult", ()) or _published_mult(image_size)
    return {
        "channels": settings.integer("num_channels", 128),
        "learned_variance": settings.flag("learn_sigma", False),
        "num_classes": (num_classes or 1000) if settings.flag("class_cond", False) else None,
        **_levels(settings, image_size, mult, "attention_resolutions"),
    }


def _published_mult(image_size: int) -> tuple[float, ...]:
    if image_size not in _CHANNEL_MULT:
        raise ValueError(
            f"config must say channel_mult for image_size {image_size}; "
            f"the projects have one for {', '.join(map(str, sorted(_CHANNEL_MULT)))}"
        )
    return _CHANNEL_MULT[image_size]


def _levels(
    settings: Settings, image_size: int, mult: Sequence[float], resolutions_flag: str | None = None
) -> dict[str, Any]:
    """Multiples and attention: by resolutions under a flag's name, else by the factors that classes take."""
    there = [image_size // 2**i for i in range(len(mult))]
    if resolutions_flag is None:
        factors = settings.integers("attention_resolutions", None)
        wanted = [there[i] for i in range(len(mult)) if 2**i in factors]
    else:
        default = (16, 8) if resolutions_flag == "attention_resolutions" else (32, 16, 8)
        wanted = [resolution for resolution in settings.integers(resolutions_flag, default) if resolution in there]
    return {"channel_mult": tuple(mult), "attention_resolutions": tuple(wanted)}
