"""Saving and loading the newest checkpoints, also on a full disk."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from runtime.files import one_line
from runtime.messages import say
from runtime.tensor_bytes import Content

from .folder import checkpoint_folders, drop_folder, encode, looks_whole, read_folder, step_of, write_folder


class CheckpointWriteError(OSError):
    """A checkpoint could not be written; those before it are as they were."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint in memory.

    Attributes:
        step: Number of training steps done.
        tensors: Everything that is a tensor, by name.
        state: Everything else.
        notes: What was passed over to get here: newer checkpoints that could not be used, a line each.
    """

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    notes: tuple[str, ...] = ()


def _read(folder: Path) -> Checkpoint:
    tensors, state = read_folder(folder)
    return Checkpoint(step=state.pop("step"), tensors=tensors, state=state)


def _drop(folders: list[Path]) -> None:
    for folder in folders:
        try:
            drop_folder(folder)
        except OSError as error:
            say(f"checkpoint {folder} is old and could not be deleted ({one_line(error)})")


def save_checkpoint(root: Path, *, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and drop the oldest ones.

    It is written under a temporary name, synced, and renamed: at any moment it is complete or absent. Where the disk is
    full, all but the newest good one before it are dropped to make room.

    Args:
        root: The folder of checkpoints.
        step: Number of training steps done.
        tensors: Tensors by name.
        state: Anything JSON can hold.
        keep: How many of the newest to keep, at least 1.

    Returns:
        The checkpoint's folder.

    Raises:
        CheckpointWriteError: If it could not be written; the newest good one before it is kept.
    """
    files = encode(step, tensors, state)
    try:
        try:
            final = write_folder(root, step, files)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT) or not _make_room(root, step, tensors):
                raise
            final = write_folder(root, step, files)
    except OSError as error:
        raise CheckpointWriteError(_not_written(root, step, files, tensors, error)) from error
    # what is newer than this step was passed over, or this step would not be run: it takes no good one's place
    kept, old = 0, []
    for folder in checkpoint_folders(root):
        if step_of(folder) <= step:
            old += [folder] if kept >= max(keep, 1) else []
            kept += looks_whole(folder)
    _drop(old)
    return final


def _newest_good(root: Path, step: int, tensors: dict[str, Tensor]) -> Path | None:
    """The newest checkpoint up to a step that is whole and of this architecture."""
    expected = _weights(tensors)
    for folder in checkpoint_folders(root):
        try:
            if step_of(folder) <= step and mismatch(expected, _weights(_read(folder).tensors)) is None:
                return folder
        except ValueError:
            continue
    return None


def _make_room(root: Path, step: int, tensors: dict[str, Tensor]) -> bool:
    """Drop all checkpoints that are older than the newest good one; whether there were any."""
    good = _newest_good(root, step, tensors)
    old = [] if good is None else [folder for folder in checkpoint_folders(root) if step_of(folder) < step_of(good)]
    if old:
        say(f"the disk is full: of the checkpoints in {root} only {good.name if good else None} is kept to make room")
        _drop(old)
    return bool(old)


def _not_written(root: Path, step: int, files: dict[str, Content], tensors: dict[str, Tensor], error: OSError) -> str:
    reason = one_line(error.strerror or error)
    needed = sum(content.size for content in files.values()) / 2**20
    try:
        room = f"it needs {needed:.1f} MB and {shutil.disk_usage(root).free / 2**20:.1f} MB are free"
        good = _newest_good(root, step, tensors)
    except OSError:
        room, good = f"it needs {needed:.1f} MB", None
    kept = f"{good.name} is kept" if good else "there is no good one before it"
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    fix = "free some space" if full else "raise the limit" if error.errno == errno.EFBIG else f"make {root} writable"
    return (
        f"checkpoint {root / f'step_{step:08d}'} could not be written ({reason}): {room}; {kept}; "
        f"{fix}, then the same command goes on from there"
    )


def _weights(tensors: dict[str, Tensor], ignored: tuple[str, ...] = ()) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(("optim.", *ignored))}


def mismatch(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """The reason why ``found`` cannot be loaded in place of ``expected``, or None.

    Args:
        expected: Tensors by name, as the model has them.
        found: Tensors by name, as the file has them.
    """
    for title, names in (
        ("lacks", sorted(expected.keys() - found.keys())),
        ("has unexpected", sorted(found.keys() - expected.keys())),
    ):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            return f"it is of another architecture ({title} {one_line(names[0], 80)}{more})"
    for name, tensor in expected.items():
        ours, theirs = (f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (tensor, found[name]))
        if ours != theirs:
            return f"it is of another architecture ({name}: expected {ours}, got {theirs})"
    return None


def _not_finite(tensors: dict[str, Tensor]) -> str | None:
    """The first tensor of weights that is not finite, or None: no such checkpoint is ever written."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            return f"{name} is not finite"
    return None


def load_newest(
    root: Path,
    expected: dict[str, Tensor],
    check: Callable[[Checkpoint], str | None] | None = None,
    *,
    ignored: tuple[str, ...] = (),
    step: int | None = None,
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole and fits.

    A trainer may write and delete checkpoints meanwhile.

    Args:
        root: The folder of checkpoints.
        expected: The tensors that it must hold, for their names, shapes and dtypes. The optimizer's, whose names start
            with "optim.", are left to ``check``. Weights, which is all but "loss.", must be finite.
        check: Says what else is wrong with a checkpoint, or None.
        ignored: Beginnings of names that need not be looked at.
        step: The only one to look at; None for the newest.

    Returns:
        The checkpoint, with a note for each newer one that was passed over; None if there is none at all.

    Raises:
        ValueError: If there are checkpoints but none can be used.
    """
    notes: dict[Path, str] = {}
    # looked up anew each time, since a trainer may delete one while it is read, having written another
    while folders := [
        folder for folder in checkpoint_folders(root) if folder not in notes and step in (None, step_of(folder))
    ]:
        folder = folders[0]
        try:
            checkpoint = _read(folder)
            found = _weights(checkpoint.tensors, ignored)
            problem = mismatch(expected, found) or _not_finite(_weights(found, ("loss.",)))
            problem = problem or (check(checkpoint) if check is not None else None)
            if problem is None:
                return replace(checkpoint, notes=tuple(notes.values()))
        except ValueError as error:
            if not folder.exists():
                continue
            problem = str(error)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
            # a forged state may hold what nobody thought of when it was checked
            problem = f"its state cannot be read ({type(error).__name__}: {error})"
        notes[folder] = f"checkpoint {folder} is passed over: {one_line(problem)}"
    if notes:
        first = next(iter(notes.values())).split(": ", 1)[1]
        raise ValueError(
            f"no checkpoint in {root} can be used: {first}; restore a good one, or move the folder away to start anew"
        )
    return None
