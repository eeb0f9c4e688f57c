"""Start-up choices that rank 0 makes for all ranks: data, checkpoint, precision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch

from data import AnyDataset, AnyKind, ImageDataset, LatentDataset, RealSpace, VectorDataset
from models import NetworkModel
from runtime.processes.ranks import Ranks

from .config import Config
from .from_checkpoints import (
    check_data,
    load_trained,
    said_of_images,
    say_other_files,
    trained_space,
    trained_text,
)
from .precision import NetworkMode
from .text.told import told_as_trained

T = TypeVar("T")


def load_on_rank0_first(ranks: Ranks, key: str, load: Callable[[], T]) -> T:
    """Load on every process; on rank 0 first, so that what is downloaded is so once.

    Args:
        ranks: The processes.
        key: A name that is used once.
        load: Loads.
    """
    found = load() if ranks.first else None
    ranks.share(key, lambda: None)
    return load() if found is None else found


def as_trained(ranks: Ranks, config: Config, workdir: Path, dataset: AnyDataset) -> AnyDataset:
    """A data set that ``check_data`` passes, as a model knows it by the checkpoints that rank 0 sees.

    Its classes and words are numbered as theirs are, and its vectors, if it has any, standardized as theirs.
    """

    def said() -> Any:
        say_other_files(config, workdir, dataset)
        names, space = check_data(config, workdir, dataset), trained_space(workdir)
        text = trained_text(said_of_images(workdir))
        return [names, space and asdict(space), text and text.vocabulary]

    names, space, words = ranks.share("classes, space and words", said)
    if names:
        dataset = dataset.with_class_order(names)
    if words and isinstance(dataset, (ImageDataset, LatentDataset)):
        dataset = dataset.with_words(words)
    if space and isinstance(dataset, VectorDataset):
        dataset = replace(dataset, space=RealSpace(tuple(space["mean"]), tuple(space["std"])))
    return told_as_trained(config, dataset, workdir, ranks)


def load_same_trained(
    ranks: Ranks,
    config: Config,
    workdir: Path,
    kind: AnyKind,
    device: torch.device,
    *,
    key: str = "checkpoint",
    weights: str = "ema",
    step: int | None = None,
) -> tuple[NetworkModel, int]:
    """``load_trained`` on every process, of the step that rank 0 finds: a trainer may write another in the meantime."""
    load = partial(load_trained, config, workdir, kind, device, weights=weights)
    found = load(step=step) if ranks.first else None
    step = ranks.share(key, lambda: found and found[1])
    return found or load(step=step)


def pick_together(
    ranks: Ranks, pick: Callable[..., NetworkMode], recorded: dict[str, Any] | None = None
) -> NetworkMode:
    """Rank 0's choice of how the network computes, for all processes, whatever their machines are good at.

    Args:
        ranks: The processes.
        pick: ``pick_mode`` with all its arguments but ``recorded``.
        recorded: How the run began, which rank 0 keeps to.
    """
    picked = ranks.share("mode", lambda: pick(recorded=recorded).recorded())
    return pick(recorded=recorded if ranks.first else picked)
