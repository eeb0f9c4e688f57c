"""What all processes of a job load, rank 0 first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch

from data import ImageDataset
from models import NetworkScoreModel

from .config import Config
from .ranks import Ranks
from .state import load_trained

T = TypeVar("T")


def load_in_turn(ranks: Ranks, key: str, load: Callable[[], T]) -> T:
    """Load on every process; on rank 0 first, so that what is downloaded is so once.

    Args:
        ranks: The processes.
        key: A name that is used once.
        load: Loads.
    """
    found: list[T] = []

    def first() -> bytes:
        found.append(load())
        return b"loaded"

    ranks.share(key, first)
    return found[0] if found else load()


def load_same_trained(
    ranks: Ranks, config: Config, workdir: Path, dataset: ImageDataset, device: torch.device
) -> tuple[NetworkScoreModel, int]:
    """``load_trained`` on every process, of the step that rank 0 finds: a trainer may write another in the meantime."""
    found: list[tuple[NetworkScoreModel, int]] = []

    def first() -> bytes:
        found.append(load_trained(config, workdir, dataset, device))
        return str(found[0][1]).encode()

    step = int(ranks.share("checkpoint", first))
    return found[0] if found else load_trained(config, workdir, dataset, device, step=step)
