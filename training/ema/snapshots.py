"""Snapshots of averages in a work directory, beside its checkpoints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from experiment.checkpoints.folder import (
    checkpoint_folders,
    drop_folder,
    encode,
    peek_state,
    read_folder,
    step_of,
    write_folder,
)
from experiment.checkpoints.sharding import whole
from experiment.checkpoints.store import CheckpointWriteError
from runtime.files import one_line

from .power_function import PowerFunctionEMA, Profile

FOLDER = "ema_snapshots"


def save_snapshot(workdir: Path, step: int, averages: Sequence[PowerFunctionEMA], *, write: bool = True) -> None:
    """Write the averages of this moment: complete or absent, as a checkpoint is.

    Args:
        workdir: The work directory.
        step: Number of training steps done.
        averages: The averages, which have as many updates each.
        write: Whether this is the process that writes; where tensors are split, the others help to collect them.

    Raises:
        CheckpointWriteError: If it could not be written.
    """
    tensors = {name: whole(value) for average in averages for name, value in average.state().items()}
    if not write or not tensors or not averages[0].num_updates:
        return
    state = {"ema_updates": averages[0].num_updates, "profiles": [average.sigma_rel for average in averages]}
    try:
        write_folder(workdir / FOLDER, step, encode(step, tensors, state))
    except OSError as error:
        raise CheckpointWriteError(
            f"the snapshot of step {step} in {workdir / FOLDER} could not be written "
            f"({one_line(error.strerror or error)}); free some space, then the same command goes on from the last "
            "checkpoint"
        ) from error


def drop_later(workdir: Path, step: int) -> None:
    """Delete the snapshots after a step, which the run that goes on from there writes anew."""
    for folder in checkpoint_folders(workdir / FOLDER):
        if step_of(folder) > step:
            drop_folder(folder)


def profiles_of(tensors: Mapping[str, Tensor], sigma_rel: float) -> dict[str, Tensor]:
    """Those tensors of a checkpoint or snapshot that are an average, by the names of its parameters."""
    prefix = f"profiles.{sigma_rel!r}."
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def snapshot_profiles(workdir: Path, step: int) -> dict[Path, list[Profile]]:
    """The folders of the snapshots up to a step, and the profiles of the averages in each, oldest first.

    Raises:
        ValueError: If one cannot be read.
    """
    found = {}
    for folder in reversed(checkpoint_folders(workdir / FOLDER)):
        if step_of(folder) <= step:
            found[folder] = _profiles(peek_state(folder), folder)
    return found


def _profiles(state: Mapping[str, Any] | None, folder: Path) -> list[Profile]:
    try:
        assert state is not None
        return [Profile(float(sigma_rel), int(state["ema_updates"])) for sigma_rel in state["profiles"]]
    except (AssertionError, LookupError, TypeError, ValueError) as error:
        raise _damaged(folder, "its state cannot be read") from error


def read_snapshot(folder: Path) -> dict[str, Tensor]:
    """The tensors of a snapshot.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return read_folder(folder)[0]
    except ValueError as error:
        raise _damaged(folder, one_line(error)) from error


def _damaged(folder: Path, problem: str) -> ValueError:
    return ValueError(f"snapshot {folder} is damaged ({problem}); restore it, or delete it to do without it")
