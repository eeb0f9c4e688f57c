"""Checkpoints: safetensors and JSON with checksums, complete or absent, the newest N kept. Loading runs no code."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

_TENSORS, _STATE, _MANIFEST = "tensors.safetensors", "state.json", "manifest.json"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds.

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


def _checksum(data: bytes) -> dict[str, Any]:
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _write_synced(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoint_folders(root: Path) -> list[Path]:
    """Checkpoint folders, newest first."""
    if not root.is_dir():
        return []
    found = [path for path in root.iterdir() if path.is_dir() and path.name.startswith("step_")]
    return sorted((path for path in found if path.name.removeprefix("step_").isdigit()), reverse=True)


def save_checkpoint(root: Path, *, step: int, tensors: dict[str, Tensor], state: dict[str, Any], keep: int) -> Path:
    """Write a checkpoint and drop the oldest ones.

    It is written under a temporary name, synced, and renamed: at any moment it is complete or absent.

    Args:
        root: The folder of checkpoints.
        step: Number of training steps done.
        tensors: Tensors by name.
        state: Anything JSON can hold.
        keep: How many of the newest to keep, at least 1.

    Returns:
        The checkpoint's folder.
    """
    root.mkdir(parents=True, exist_ok=True)
    for leftover in [*root.glob(".writing_*"), *root.glob(".dropped_*")]:
        shutil.rmtree(leftover)
    final = root / f"step_{step:08d}"
    temporary = root / f".writing_{step:08d}"
    temporary.mkdir()
    files = {
        _TENSORS: save_tensors({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}),
        _STATE: json.dumps({"step": step, **state}, indent=1).encode(),
    }
    for name, data in files.items():
        _write_synced(temporary / name, data)
    manifest = {name: _checksum(data) for name, data in files.items()}
    _write_synced(temporary / _MANIFEST, json.dumps(manifest, indent=1).encode())
    _sync_folder(temporary)
    if final.exists() and _is_whole(final, manifest):
        _drop(temporary)
    else:
        if final.exists():
            _drop(final)
        temporary.rename(final)
    _sync_folder(root)
    # what is newer than this step was passed over, or this step would not be run: it takes no good one's place
    for old in [folder for folder in checkpoint_folders(root) if folder <= final][max(keep, 1) :]:
        _drop(old)
    return final


def _is_whole(folder: Path, manifest: dict[str, Any]) -> bool:
    """Whether a folder already holds just this: a checkpoint is not taken away to be written again."""
    try:
        return all(_checksum((folder / name).read_bytes()) == value for name, value in manifest.items()) and (
            json.loads((folder / _MANIFEST).read_bytes()) == manifest
        )
    except (OSError, ValueError):
        return False


def _drop(folder: Path) -> None:
    """Delete a folder; under another name first, so that no checkpoint is ever half there."""
    aside = folder.with_name(f".dropped_{folder.name}")
    folder.rename(aside)
    shutil.rmtree(aside)


def _read(folder: Path) -> Checkpoint:
    """Read one checkpoint, or raise ValueError with what is wrong."""
    contents: dict[str, bytes] = {}
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        for name in (_TENSORS, _STATE):
            contents[name] = (folder / name).read_bytes()
            if _checksum(contents[name]) != manifest[name]:
                raise ValueError(f"{name} does not match its checksum (it is truncated or corrupt)")
        state = json.loads(contents[_STATE])
        tensors = load_tensors(contents[_TENSORS])
        return Checkpoint(step=int(state.pop("step")), tensors=tensors, state=state)
    except FileNotFoundError as error:
        raise ValueError(f"{Path(error.filename).name} is missing") from error
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError, UnicodeDecodeError, struct.error) as error:
        raise ValueError(f"it cannot be read ({type(error).__name__}: {error})") from error
    except Exception as error:
        if type(error).__module__.startswith("safetensors"):
            raise ValueError(f"{_TENSORS} cannot be read ({error})") from error
        raise


def mismatch(expected: dict[str, Tensor], found: dict[str, Tensor]) -> str | None:
    """What keeps ``found`` from being loaded where ``expected`` is, or None.

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
            return f"it is of another architecture ({title} {names[0]}{more})"
    for name, tensor in expected.items():
        ours, theirs = (f"{list(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in (tensor, found[name]))
        if ours != theirs:
            return f"it is of another architecture ({name}: expected {ours}, got {theirs})"
    return None


def load_newest(
    root: Path,
    expected: dict[str, Tensor],
    check: Callable[[Checkpoint], str | None] | None = None,
    *,
    ignored: tuple[str, ...] = (),
) -> Checkpoint | None:
    """Read the newest checkpoint that is whole and fits.

    Args:
        root: The folder of checkpoints.
        expected: The tensors that it must hold, for their names, shapes and dtypes. The optimizer's, whose names start
            with "optim.", are left to ``check``.
        check: Says what else is wrong with a checkpoint, or None.
        ignored: Beginnings of names that need not be looked at.

    Returns:
        The checkpoint, with a note for each newer one that was passed over; None if there is none at all.

    Raises:
        ValueError: If there are checkpoints but none can be used.
    """
    notes: list[str] = []
    for folder in checkpoint_folders(root):
        try:
            checkpoint = _read(folder)
            found = {k: v for k, v in checkpoint.tensors.items() if not k.startswith(("optim.", *ignored))}
            problem = mismatch(expected, found)
            if problem is None and checkpoint.step != int(folder.name.removeprefix("step_")):
                problem = f"it is of step {checkpoint.step}, not of the step its name says"
            if problem is None and check is not None:
                problem = check(checkpoint)
            if problem is not None:
                raise ValueError(problem)
        except (ValueError, OSError) as error:
            notes.append(f"checkpoint {folder} is passed over: {error}")
            continue
        return Checkpoint(checkpoint.step, checkpoint.tensors, checkpoint.state, tuple(notes))
    if notes:
        raise ValueError(
            f"no checkpoint in {root} can be used: {notes[0].split(': ', 1)[1]}; "
            "restore a good one, or move the folder away to start anew"
        )
    return None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state as tensors by name, and the rest as JSON.

    Returns:
        Tensors named "optim.<parameter number>.<key>", and {"param_groups": ...}.
    """
    state = optimizer.state_dict()
    tensors = {
        f"optim.{number}.{key}": torch.as_tensor(value)
        for number, entries in state["state"].items()
        for key, value in entries.items()
    }
    return tensors, {"param_groups": state["param_groups"]}


def optimizer_mismatch(optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> str | None:
    """What keeps a checkpoint's optimizer state from being restored, or None.

    Args:
        optimizer: Adam or AdamW over the parameters to be trained.
        checkpoint: The checkpoint.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    ours = optimizer.state_dict()["param_groups"]
    theirs = checkpoint.state.get("param_groups")
    if not isinstance(theirs, list) or len(theirs) != len(ours):
        return f"its optimizer has no {len(ours)} param_groups"
    for one, other in zip(ours, theirs, strict=True):
        if not isinstance(other, dict) or one["params"] != other.get("params") or "betas" not in other:
            return "its optimizer is another one (param_groups differ)"
    expected = {
        f"optim.{number}.{key}": torch.zeros(()) if key == "step" else parameter
        for number, parameter in enumerate(parameters if checkpoint.step > 0 else [])
        for key in ("step", "exp_avg", "exp_avg_sq")
    }
    found = {name: tensor for name, tensor in checkpoint.tensors.items() if name.startswith("optim.")}
    return mismatch(expected, found)


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Undo ``flatten_optimizer``.

    Args:
        optimizer: An optimizer over the same parameters.
        tensors: Tensors by name; those not of the optimizer are ignored.
        state: What ``flatten_optimizer`` gave beside them.
    """
    entries: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optim."):
            _, number, key = name.split(".", 2)
            entries.setdefault(int(number), {})[key] = tensor
    # settings that a later version of PyTorch added keep their defaults, those that it dropped are left out
    groups = [
        one | {key: value for key, value in other.items() if key in one}
        for one, other in zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
    ]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
