"""Checks of a config, before anything is loaded or written."""

from __future__ import annotations

import math

from likelihood import available_likelihoods
from models import check_interval, check_variance
from runtime.registry import choices_message
from sde_lib import available_grids, available_sdes, sde_defaults

from ..build import build_sde
from ..control.settings import check_control
from ..distillation.stages import stages_of
from .files import Config
from .left_out import part_rates

_MOST = 10**6  # steps, or images at a time, that no run has
_LARGE = 1e30
_BELOW_1 = math.nextafter(1, 0)
_RANGES: tuple[tuple[str, str, float, float], ...] = (
    ("training", "num_steps", 1, 10**12),
    ("training", "batch_size", 1, _MOST),
    ("training", "checkpoint_every", 1, 10**12),
    ("training", "keep_checkpoints", 1, _MOST),
    ("training", "log_every", 1, 10**12),
    ("training", "sample_every", 0, 10**12),
    ("training", "ema_snapshot_every", 1, 10**12),
    ("training", "grad_clip", 0, _LARGE),
    ("training", "accumulation_steps", 1, _MOST),
    ("training", "explosion_factor", 0, _LARGE),
    ("training", "max_bad_steps", 0, 10**12),
    ("optim", "warmup_steps", 0, 10**12),
    ("optim", "decay_steps", 0, 10**12),
    ("optim", "learning_rate", 1e-30, 1e3),
    ("optim", "beta1", 0, _BELOW_1),
    ("optim", "beta2", 0, _BELOW_1),
    ("optim", "eps", 1e-30, 1),
    ("optim", "weight_decay", 0, 1e3),
    ("model", "dropout", 0, 0.999),
    ("model", "norm_eps", 1e-12, 1),
    ("model", "condition_dropout", 0, _BELOW_1),
    ("model", "condition_noise_t", 0, 1),
    ("data", "channels", 0, _MOST),
    ("data", "given_frames", 0, _MOST),
    ("sampling", "num_steps", 1, _MOST),
    ("sampling", "num_samples", 1, 10**9),
    ("sampling", "batch_size", 1, _MOST),
    ("sampling", "threshold_x0", 0, 1),
    ("sampling", "condition_noise_t", 0, 1),
    ("sampling", "classifier_scale", 0, 1e6),
    ("sampling", "guidance_weight", 0, 1e3),
    ("sampling", "guidance_rescale", 0, 1),
    ("eval", "batch_size", 1, _MOST),
    ("eval", "num_images", 0, 10**12),
    ("eval", "vlb_num_steps", 0, _MOST),
    ("eval", "vlb_steps_per_image", 0, _MOST),
    ("eval", "ode_importance_samples", 1, _MOST),
    ("eval", "ode_num_probes", 1, _MOST),
    ("eval", "ode_rtol", 1e-16, 1),
    ("eval", "ode_atol", 1e-16, 1),
    ("eval", "ode_num_steps", 0, _MOST),
    ("eval", "ode_max_nfe", 0, 10**12),
    ("eval", "ode_t_end", 0, _BELOW_1),
    ("eval", "classify_rounds", 1, _MOST),
    ("eval", "classify_z", 0, _LARGE),
    ("eval", "classify_told_above_t", 0, _BELOW_1),
    ("restore", "noise_std", 0, _LARGE),
    ("restore", "num_images", 1, 10**9),
    ("restore", "samples_per_image", 1, _MOST),
    ("segment", "num_images", 1, 10**9),
    ("segment", "samples_per_image", 2, _MOST),
    ("control", "scale", 0, _LARGE),
    ("distillation", "double_every", 1, 10**12),
    ("distillation", "stage_steps", 1, 10**12),
    ("distillation", "ratio", 1, _MOST),
    ("distillation", "regression", 0, _LARGE),
    ("distillation", "regression_steps", 1, _MOST),
    ("distillation", "gan", 0, _LARGE),
    ("edit", "t", 0, 1),
    ("edit", "noise_ratio", 0, _LARGE),
    ("edit", "num_images", 1, 10**9),
    ("progressive", "num_times", 2, _MOST),
    ("progressive", "num_images", 1, 10**9),
    ("progressive", "shared_images", 1, 10**9),
    ("progressive", "shared_samples", 2, _MOST),
)
_ANSWERS = ("consistency", "flow", "generator", "posterior_mean", "steps")
_SECTIONS = (
    *("data", "sde", "model", "training", "optim", "sampling", "eval", "restore", "segment", "interpolate"),
    *("progressive", "edit", "control", "distillation"),
)
_CHOICES: tuple[tuple[str, str, list[str]], ...] = (
    ("distillation", "solver", ["euler", "heun"]),
    *((section, "precision", ["auto", "bf16", "fp32"]) for section in ("training", "sampling", "eval")),
    *((section, "compile", ["auto", "off", "on"]) for section in ("training", "sampling", "eval")),
    ("training", "sharding", ["none", "fsdp"]),
    ("sampling", "condition_split", ["train", "test"]),
    ("restore", "split", ["train", "test"]),
    ("segment", "split", ["train", "test"]),
    ("interpolate", "split", ["train", "test"]),
    ("edit", "split", ["train", "test"]),
    ("progressive", "split", ["train", "test"]),
    ("interpolate", "latents", ["flow", "q"]),
    ("interpolate", "way", ["auto", "circle", "lerp", "slerp"]),
    ("sampling", "guidance_schedule", ["cfg++", "constant"]),
    ("sampling", "guidance_reference_weights", ["ema", "raw"]),
    # without dequantization a density is measured, and images have levels
    ("eval", "ode_dequantization", ["decoder", "none", "uniform", "variational"]),
)


def check_config(config: Config) -> None:
    """Refuse numbers that no run can have, before anything is loaded or written.

    Raises:
        ValueError: Naming the first such key.
    """
    for section in _SECTIONS:
        if section not in config:
            raise ValueError(f"the config has no section {section}; start from configs.default.get_default_config()")
    defaults = sde_defaults(config.sde.name) if config.sde.name in available_sdes() else {}
    for key, value in config.sde.items():
        if isinstance(value, float) and not math.isfinite(value) and value != defaults.get(key):
            raise ValueError(f"config.sde.{key} must be finite, got {value}; set a number")
    # an option that the SDE does not have, or cannot have so
    build_sde(config)
    _check_ranges(config)
    for section, key, choices in _CHOICES:
        value = config[section].get(key)
        if value not in choices:
            raise ValueError(choices_message(key, value, choices))
    if (answers := config.model.get("answers", "posterior_mean")) not in _ANSWERS:
        raise ValueError(choices_message("answers", answers, list(_ANSWERS)))
    if answers == "steps":
        stages_of(config)
    part_rates(config)
    check_control(config)
    _check_uses(config)
    _check_training(config)


def _check_ranges(config: Config) -> None:
    """Refuse numbers outside ``_RANGES``."""
    for section, key, least, most in _RANGES:
        # an imported network's section has no key of which it has no use
        value = config[section].get(key, least if section == "model" else None)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"config.{section}.{key} must be a number, got {value!r}; set one")
        if not value >= least:
            fix = "set a number" if math.isnan(value) else "raise it"
            raise ValueError(f"config.{section}.{key} must be at least {least}, got {value}; {fix}")
        if value > most:
            fix = "set it to 0 for none" if most == _LARGE else "lower it"
            allowed = "below 1" if most == _BELOW_1 else f"at most {most}"
            raise ValueError(f"config.{section}.{key} must be {allowed}, got {value}; {fix}")


def _check_uses(config: Config) -> None:
    """Refuse settings of distillations and of uses of a model that cannot be, each by itself."""
    least, most = (*config.distillation.noise_levels, 0, 0)[:2]
    if len(config.distillation.noise_levels) != 2 or not 1 <= least <= most:
        raise ValueError(
            f"config.distillation.noise_levels must be the least and the most, got {config.distillation.noise_levels}; "
            "10,1280 is usual"
        )
    if 0 < config.training.explosion_factor <= 1:
        raise ValueError(
            f"config.training.explosion_factor must be 0 or above 1, got {config.training.explosion_factor}: a usual "
            "step would be skipped; try 1000"
        )
    for key in ("noise_t", "guidance_weight", "truncated"):
        if config.cascade[key] and not config.cascade.stages:
            raise ValueError(f"config.cascade.{key} is of a cascade, got a config of one model; leave it out")
    for section, key in (("interpolate", "times"), ("progressive", "times"), ("progressive", "share_at")):
        if not all(0 < t <= 1 for t in config[section][key]):
            raise ValueError(f"config.{section}.{key} must lie in (0, 1], got {config[section][key]}; 1 is noise alone")
    if not all(0 <= w <= 1 for w in config.interpolate.weights):
        raise ValueError(
            f"config.interpolate.weights must lie in [0, 1], got {config.interpolate.weights}; 0 is the first image"
        )
    if config.edit.t and config.edit.noise_ratio:
        raise ValueError(
            "config.edit.t and config.edit.noise_ratio both say how far images are taken, got "
            f"{config.edit.t:g} and {config.edit.noise_ratio:g}; leave one at 0"
        )
    if config.data.get("text_options") and not config.data.get("text_encoder"):
        raise ValueError(
            f"config.data.text_options is of data.text_encoder, got {config.data.text_options} without one; name a "
            "folder, or leave it out"
        )
    if config.sampling.guidance_interval:
        check_interval(config.sampling.guidance_interval)
    size = config.data.image_size
    if not all(0 <= side <= _MOST for side in (size if isinstance(size, (tuple, list)) else (size,))):
        raise ValueError(f"config.data.image_size must be from 0 to {_MOST}, got {size}; set the pixels of a side")
    if not 0 <= config.seed < 2**63:
        raise ValueError(f"config.seed must lie in [0, 2^63), got {config.seed}; choose another")


def _check_training(config: Config) -> None:
    """Refuse what cannot be trained on or averaged."""
    if config.model.get("first_stage") and config.data.get("first_stage"):
        raise ValueError("model.first_stage trains an autoencoder, data.first_stage names one; leave one of them out")
    if config.data.get("given_frames") and (config.model.get("first_stage") or config.data.get("first_stage")):
        raise ValueError(
            f"data.given_frames={config.data.given_frames} is of clips of pixels, got an autoencoder's latents; leave "
            "out data.given_frames, or the first_stage"
        )
    if bool(config.data.get("couples")) != (config.training.loss == "reflow"):
        raise ValueError(
            f"training.loss=reflow learns on data.couples, got {config.training.loss} and "
            f"{config.data.get('couples') or 'none'}; write couples by --mode couple, and set both"
        )
    if config.training.loss == "scm" and config.training.precision == "bf16":
        raise ValueError(
            "training.loss=scm takes derivatives along the flow, which are of float32, got training.precision=bf16; "
            "set it to fp32"
        )
    profiles = tuple(config.training.ema_profiles)
    if not all(0 < width <= 12**-0.5 for width in profiles) or len(set(profiles)) < len(profiles):
        raise ValueError(
            f"config.training.ema_profiles must lie in (0, 0.2886] and differ, got {profiles}; (0.05, 0.1) are usual"
        )
    if profiles and config.model.get("answers") == "steps":
        raise ValueError(
            "config.training.ema_profiles is of one average, got model.answers=steps, whose average begins anew at "
            "each stage; leave it out"
        )
    if not 0 <= config.training.ema_decay < 1:
        raise ValueError(f"config.training.ema_decay must lie in [0, 1), got {config.training.ema_decay}; try 0.9999")


def check_schedule(config: Config) -> None:
    """Refuse to train on where the learning rate has fallen to 0.

    Raises:
        ValueError: Naming both keys.
    """
    num_steps, decay_steps = config.training.num_steps, config.optim.decay_steps
    if config.model.get("answers", "posterior_mean") == "steps" and num_steps > (total := stages_of(config).total):
        raise ValueError(
            f"config.training.num_steps must be at most {total}, the steps of all of distillation.stages, got "
            f"{num_steps}; lower it, or raise distillation.stage_steps in another --workdir"
        )
    if num_steps > decay_steps > 0:
        raise ValueError(
            f"config.training.num_steps must be at most config.optim.decay_steps={decay_steps}, where the learning "
            f"rate has fallen to 0, got {num_steps}; raise config.optim.decay_steps too, or set it to 0 for no decay"
        )


def check_learned_parts(config: Config) -> None:
    """Refuse to measure a learned variance or dequantization that the model does not have, before anything is measured.

    Raises:
        ValueError: In one line.
    """
    if "vlb" in config.eval.likelihoods and config.eval.vlb_variance == "learned" and not config.model.learned_variance:
        raise ValueError(
            "eval.vlb_variance=learned needs a network with model.learned_variance, got one without; "
            "use small or large, or train one that learns it"
        )
    variational = "ode" in config.eval.likelihoods and config.eval.ode_dequantization == "variational"
    if variational and not config.model.dequantizer:
        raise ValueError(
            "eval.ode_dequantization=variational needs a model with model.dequantizer, got one without; "
            "use decoder or uniform, or train with training.loss=dequantized"
        )
    uniform = "ode" in config.eval.likelihoods and config.eval.ode_dequantization == "uniform"
    if uniform and config.model.parameterization == "levels":
        raise ValueError(
            "eval.ode_dequantization=uniform needs a model of what lies between levels, "
            "got model.parameterization=levels; use decoder"
        )


def check_eval_names(config: Config) -> None:
    """Refuse evaluation settings that would fail only after the training.

    Raises:
        ValueError: Naming the first of them.
    """
    for name in config.eval.likelihoods:
        if name not in available_likelihoods():
            raise ValueError(choices_message("likelihood", name, available_likelihoods()))
    check_variance(config.eval.vlb_variance)
    for grid in (config.eval.vlb_grid, config.eval.ode_grid):
        if grid not in available_grids():
            raise ValueError(choices_message("grid", grid, available_grids()))
    check_learned_parts(config)
    if config.eval.split not in ("train", "test"):
        raise ValueError(choices_message("split", config.eval.split, ["test", "train"]))
