"""A trained network and its images, for benchmarks of what is done with them."""

from __future__ import annotations

import argparse
from typing import Any

from configs.default import get_default_config
from data import ImageDataset
from experiment import TrainedRun, load_run
from experiment.build import build_dataset
from experiment.config import Config
from experiment.workdir import default_workdir


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add the options that name a run."""
    parser.add_argument("--config", default="configs/vp/digits.py", help="what the network was trained with")
    parser.add_argument("--workdir", default="", help="its work directory; default: runs/<family>/<config name>")


def load_named_run(arguments: argparse.Namespace) -> TrainedRun:
    """The run that the options of ``add_run`` name; ``--mode train`` makes it."""
    return load_run(arguments.workdir or default_workdir(arguments.config))


def unguided(run: TrainedRun, **sampling: Any) -> Config:
    """The config of a run with settings of ``config.sampling``, and without the guidance that it may have."""
    config = run.config.copy_and_resolve_references()
    defaults: Config = get_default_config().sampling
    guidance = [key for key in defaults if key.startswith(("guidance", "classifier"))]
    config.sampling.update({key: defaults[key] for key in guidance} | {"options": ""} | sampling)
    return config


def load_images(config: Config, split: str) -> ImageDataset:
    """A split of ``config.data``, which must be of images.

    Raises:
        SystemExit: If it is of vectors.
    """
    dataset = build_dataset(config, split)
    if not isinstance(dataset, ImageDataset):
        raise SystemExit(f"the benchmark needs images, got the vectors of {dataset.name}; try configs/vp/digits.py")
    return dataset
