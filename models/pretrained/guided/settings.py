"""Settings of OpenAI's improved-diffusion and guided-diffusion, as flags or as arguments of their classes."""

from __future__ import annotations

from typing import Any, Literal

from ...parameterization import TimeInput
from ..shared.plan import ModelPlan, plan_network
from ..shared.settings import Config, Settings

Project = Literal["guided", "improved"]

_CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
# how a model was trained, is run, is sampled from or is laid out in its file: none of it changes the model
_NOT_THE_MODEL = (
    "batch_size", "classifier_path", "classifier_scale", "classifier_use_fp16", "clip_denoised", "model_path",
    "num_samples", "rescale_learned_sigmas", "sigma_small", "timestep_respacing", "use_checkpoint", "use_ddim",
    "use_fp16", "use_kl", "use_new_attention_order",
)  # fmt: skip
_OF_THE_NETWORK = (
    "attention_resolutions", "channel_mult", "class_cond", "dropout", "learn_sigma", "num_channels",
    "num_head_channels", "num_heads", "num_heads_upsample", "num_res_blocks", "resblock_updown",
    "use_scale_shift_norm",
)  # fmt: skip


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
    backbone, network = plan_unet(settings, num_classes)
    settings.ignore((*_NOT_THE_MODEL, *(name for name in settings.values if name.startswith("classifier_"))))
    parameterization = "x0" if settings.flag("predict_xstart", False) else "eps"
    sde, time_input = _plan_sde(settings, project)
    settings.finish()
    return ModelPlan(backbone, network, sde, parameterization=parameterization, time_input=time_input)


def plan_unet(
    settings: Settings, num_classes: int | None = None, *, attention: tuple[int, ...] = (16, 8)
) -> tuple[str, dict[str, Any]]:
    """Name and options of the backbone for a ``UNetModel``, by its own arguments or by flags.

    Args:
        settings: The settings, of which those that are no part of the network are left.
        num_classes: See ``plan_guided``.
        attention: Resolutions that attend where flags say none.

    Raises:
        ValueError: In one line: a setting is impossible, or of a network that is not supported.
    """
    by_flags = "model_channels" not in settings.values
    image_size = settings.integer("image_size", 64 if by_flags else None)
    head_channels = settings.integer("num_head_channels", -1)
    num_heads = settings.integer("num_heads", 4 if by_flags else 1)
    own = _by_flags(settings, image_size, num_classes, attention) if by_flags else _by_constructor(settings, image_size)
    network = {
        "image_size": image_size,
        "in_channels": settings.integer("in_channels", 3),
        **own,
        "num_res_blocks": settings.integer("num_res_blocks", 2 if by_flags else None),
        "num_heads": num_heads,
        "head_channels": None if head_channels == -1 else head_channels,
        "dropout": settings.number("dropout", 0.0),
        "scale_shift_norm": settings.flag("use_scale_shift_norm", by_flags),
        "resampling": "residual" if settings.flag("resblock_updown", False) else "convolution",
        "symmetric_downsample": True,
        "norm_eps": 1e-5,
        "embedding": "cos_first",
    }
    settings.refuse_unless(num_heads_upsample=(-1, num_heads), conv_resample=True, dims=2)
    return plan_network(network)


def plan_classifier(config: Config) -> ModelPlan:
    """Plan a classifier from the settings of guided-diffusion.

    Args:
        config: See ``from_guided_classifier``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings(config)
    by_flags = "model_channels" not in settings.values
    image_size = settings.integer("image_size", 64 if by_flags else None)
    if by_flags:
        prefix = "classifier_"
        network = {
            "channels": settings.integer("classifier_width", 128),
            "num_res_blocks": settings.integer("classifier_depth", 2),
            **_by_resolutions(
                settings, "classifier_attention_resolutions", (32, 16, 8), image_size, _published_mult(image_size)
            ),
        }
        settings.ignore(_OF_THE_NETWORK)
    else:
        prefix = ""
        network = {
            "in_channels": settings.integer("in_channels", 3),
            "channels": settings.integer("model_channels"),
            "num_classes": settings.integer("out_channels"),
            "num_res_blocks": settings.integer("num_res_blocks"),
            "head_channels": settings.integer("num_head_channels"),
            "dropout": settings.number("dropout", 0.0),
            **_by_factors(settings, image_size),
        }
        settings.refuse_unless(conv_resample=True, dims=2)
        settings.ignore(["learn_sigma"])
    settings.refuse_unless(**{f"{prefix}pool": "attention"})
    settings.ignore((*_NOT_THE_MODEL, "predict_xstart"))
    residual = settings.flag(f"{prefix}resblock_updown", by_flags)
    network |= {
        "image_size": image_size,
        "scale_shift_norm": settings.flag(f"{prefix}use_scale_shift_norm", by_flags),
        "resampling": "residual" if residual else "convolution",
    }
    sde, time_input = _plan_sde(settings, "guided")
    settings.finish()
    return ModelPlan("classifier", network, sde, time_input=time_input)


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
    in_channels, out_channels = settings.integer("in_channels", 3), settings.integer("out_channels")
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
        **_by_factors(settings, image_size),
    }


def _by_flags(
    settings: Settings, image_size: int, num_classes: int | None, attention: tuple[int, ...]
) -> dict[str, Any]:
    mult = settings.numbers("channel_mult", ()) or _published_mult(image_size)
    return {
        "channels": settings.integer("num_channels", 128),
        "learned_variance": settings.flag("learn_sigma", False),
        "num_classes": (num_classes or 1000) if settings.flag("class_cond", False) else None,
        **_by_resolutions(settings, "attention_resolutions", attention, image_size, mult),
    }


def _published_mult(image_size: int) -> tuple[float, ...]:
    if image_size not in _CHANNEL_MULT:
        raise ValueError(
            f"config must say channel_mult for image_size {image_size}; "
            f"the projects have one for {', '.join(map(str, sorted(_CHANNEL_MULT)))}"
        )
    return _CHANNEL_MULT[image_size]


def _by_resolutions(
    settings: Settings, name: str, default: tuple[int, ...], image_size: int, mult: tuple[float, ...]
) -> dict[str, Any]:
    """Options of the levels, where a flag names the resolutions that attend, of which not all need be there."""
    there = [image_size // 2**i for i in range(len(mult))]
    wanted = tuple(size for size in settings.integers(name, default) if size in there)
    return {"channel_mult": mult, "attention_resolutions": wanted}


def _by_factors(settings: Settings, image_size: int) -> dict[str, Any]:
    """Options of the levels, where an argument gives the factors by which the levels that attend are smaller."""
    mult, factors = settings.numbers("channel_mult", (1, 2, 4, 8)), settings.integers("attention_resolutions")
    wanted = tuple(image_size // 2**i for i in range(len(mult)) if 2**i in factors)
    return {"channel_mult": mult, "attention_resolutions": wanted}
