"""The making of samples: the settings, and all that they depend on."""

from __future__ import annotations

import json
import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from data import AnyKind, VectorKind
from experiment.config import Config, flatten, parse_options
from experiment.pictures import array_shape
from models import NetworkScoreModel, ReverseVariance, pick_variance
from samplers import Sampler

from .kept_batches import code_digest, digest_of

_FORMAT = 1
_PACKAGES = ("runtime", "sde_lib", "data", "models", "samplers", "experiment", "evaluation", "commands")
_FIXED = ("data.dataset", "data.image_size", "data.channels", "sde.", "model.", "sampling.")
# changes no sample, or is said of the set: its number, its classes
_FREE = (
    "sampling.num_samples",
    "sampling.classes",
    "sampling.png_folder",
    "sampling.precision",
    "sampling.compile",
)


def fingerprint_of(
    config: Config,
    model: NetworkScoreModel,
    step: int,
    kind: AnyKind,
    classes: Sequence[int] | None,
    network: dict[str, Any],
    device: torch.device,
) -> dict[str, Any]:
    """All that sample k depends on, to the bit, as JSON gives it back.

    Args:
        config: The config.
        model: The model that samples.
        step: The training step of its weights.
        kind: The images that it is for.
        classes: The classes that are drawn in turn.
        network: How the network computes.
        device: Where it does.
    """
    state = model.state_dict()
    found = {key: value for key, value in flatten(config) if key.startswith(_FIXED) and key not in _FREE}
    found |= {"step": step, "weights": digest_of(*(state[key] for key in sorted(state))), "seed": config.seed}
    found |= {"image_shape": kind.image_shape, "num_levels": kind.num_levels, "classes": classes}
    if isinstance(kind, VectorKind):
        found["space"] = asdict(kind.space)
    found |= {"network": network, "device": device.type, "torch": torch.__version__, "format": _FORMAT}
    found["code"] = code_digest(_PACKAGES, config.plugins)
    return json.loads(json.dumps(found))


def variance_of(sampler: Sampler, *, learned: bool) -> ReverseVariance | None:
    """The reverse variance that a sampler draws with, of a model that learns its own or not; None of others."""
    variance = getattr(getattr(sampler, "predictor", None), "variance", None)
    return None if variance is None else pick_variance(variance, learned=learned)


def about_of(
    config: Config,
    step: int,
    kind: AnyKind,
    classes: Sequence[int] | None,
    network: dict[str, Any],
    variance: ReverseVariance | None,
) -> dict[str, Any]:
    """The contents of ``samples.json``.

    Args:
        config: The config.
        step: The training step of the weights.
        kind: The images that the model is for.
        classes: The classes that are drawn in turn.
        network: How the network computes.
        variance: See ``variance_of``.
    """
    settings, names = config.sampling, kind.class_names
    return {
        "sampler": settings.sampler,
        "options": parse_options(settings.options),
        "variance": variance,
        "grid": settings.grid,
        "num_steps": settings.num_steps,
        "seed": config.seed,
        "step": step,
        "weights": "ema",
        "batch_size": settings.batch_size,
        "classes": None if classes is None else list(classes),
        "class_names": [names[k] for k in classes] if classes is not None and names else None,
        # vectors have no range
        "clip_x0": settings.clip_x0 and kind.num_levels is not None,
        "threshold_x0": settings.threshold_x0,
        "precision": network.get("precision"),
        "record_trajectory": settings.record_trajectory,
        "dataset": config.data.dataset,
        "image_shape": list(array_shape(kind)),
        "num_levels": kind.num_levels,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
