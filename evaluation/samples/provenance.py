"""The settings that samples were made with, for ``samples.json``."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from data import AnyKind
from experiment.config import Config, parse_options
from experiment.pictures import array_shape
from models import ReverseVariance, pick_variance
from samplers import Sampler


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
    guidance: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """The contents of ``samples.json``.

    Args:
        config: The config.
        step: The training step of the weights.
        kind: The images that the model is for.
        classes: The classes that are drawn in turn.
        network: How the network computes.
        variance: See ``variance_of``.
        guidance: See ``experiment.guidance.described``.
    """
    settings, names = config.sampling, kind.class_names
    return {
        "sampler": settings.sampler,
        "options": parse_options(settings.options),
        "variance": variance,
        "guidance": guidance,
        "grid": settings.grid,
        "num_steps": settings.num_steps,
        "seed": config.seed,
        "step": step,
        "weights": "ema",
        "batch_size": settings.batch_size,
        "classes": None if classes is None else list(classes),
        "class_names": [names[k] for k in classes] if classes is not None and names else None,
        "classifier": settings.classifier or None,
        "classifier_scale": settings.classifier_scale if settings.classifier else None,
        # vectors and latents have no range
        "clip_x0": settings.clip_x0 and kind.seen_levels is not None,
        "threshold_x0": settings.threshold_x0,
        "precision": network.get("precision"),
        "record_trajectory": settings.record_trajectory,
        "dataset": config.data.dataset,
        "image_shape": list(array_shape(kind)),
        "num_levels": kind.num_levels,
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": np.__version__},
    }
