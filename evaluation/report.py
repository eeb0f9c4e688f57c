"""Model and data in ``eval/report.json``, whatever is measured."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import torch

from data import RealSpace
from experiment.config import Config, data_root
from runtime.version import VERSION

from .measurement import EvalSplit


def describe(config: Config, split: EvalSplit) -> dict[str, Any]:
    """The data set, the model and the versions that numbers are of.

    Args:
        config: The config.
        split: The images.
    """
    dataset, model = split.dataset, config.model
    standardized_by = asdict(dataset.space) if isinstance(dataset.space, RealSpace) else {}
    return standardized_by | {
        "dataset": dataset.name,
        "root": data_root(config),
        "split": dataset.split,
        "split_source": dataset.split_source,
        "num_images": split.num_images,
        "split_size": len(dataset),
        "image_shape": list(dataset.image_shape),
        "num_levels": dataset.num_levels,
        "num_classes": dataset.num_classes,
        "class_names": list(dataset.class_names),
        "units": "bits/dim" if dataset.num_levels else "bits/dim of the density",
        "sde": config.sde.to_dict(),
        "parameterization": model.parameterization,
        "learned_variance": model.learned_variance,
        "class_conditional": model.class_conditional,
        "condition": list(config.data.condition),
        "weights": "ema",
        "seed": config.seed,
        "versions": {"project": VERSION, "torch": torch.__version__, "numpy": np.__version__},
    }
