"""The making of samples: which classes, by which settings, and all that they depend on."""

from __future__ import annotations

import difflib
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

from .partial import code_digest, digest_of

_FORMAT = 1
_PACKAGES = ("sde_lib", "models", "samplers", "data", "training", "evaluation")
_FIXED = ("data.dataset", "data.image_size", "data.channels", "sde.", "model.", "sampling.")
# changes no sample, or is said of the set: its number, its classes
_FREE = (
    "sampling.num_samples",
    "sampling.classes",
    "sampling.png_folder",
    "sampling.precision",
    "sampling.compile",
)
_MOST_NAMES = 20  # that an error lists


def classes_of(config: Config, kind: AnyKind) -> tuple[int, ...] | None:
    """The classes that samples are drawn of, in turn: those of ``sampling.classes``, or all.

    Args:
        config: The config.
        kind: The images that the model is for.

    Returns:
        Numbers of classes; None of an unconditional model.

    Raises:
        ValueError: If there is no such class, or the model knows no classes.
    """
    asked = tuple(config.sampling.classes)
    if not config.model.class_conditional:
        if asked:
            raise ValueError(
                f"sampling.classes={','.join(map(str, asked))} needs a class-conditional model, got one without "
                "classes; leave it out, or train one with model.class_conditional=True"
            )
        return None
    names = kind.class_names
    numbers = tuple(_class_number(one, kind.num_classes, names) for one in asked)
    return numbers or tuple(range(kind.num_classes))


def _class_number(asked: int | str, num_classes: int, names: Sequence[str]) -> int:
    """The class of a number, or of a name."""
    text = str(asked).strip()
    if text.isdecimal() and int(text) < num_classes:
        return int(text)
    # whole numbers are numbers of classes, also where names are numbers, and a command line takes a comma for the next
    named = [name for name in names if not name.isdecimal() and "," not in name]
    if text in named:
        return names.index(text)
    if text in names:
        raise ValueError(
            f"class {text!r} in sampling.classes is taken by its number, which is {names.index(text)}; choices: 0 to "
            f"{num_classes - 1}"
        )
    close = difflib.get_close_matches(text, named, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    listed = ", ".join(named[:_MOST_NAMES]) + (", ..." if len(named) > _MOST_NAMES else "")
    raise ValueError(
        f"unknown class {text!r} in sampling.classes; {hint}choices: 0 to {num_classes - 1}"
        + (f", or {listed}" if listed else "")
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
