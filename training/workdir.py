"""The work directory: where a run keeps its config, checkpoints, logs and results."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .config import Config, flatten
from .files import one_line, parse_json, read_regular, write_atomically
from .logging import say

# What may change between two commands on one work directory without making it another run.
_FREE_IN_TRAINING = (
    "training.num_steps",
    "training.checkpoint_every",
    "training.keep_checkpoints",
    "training.log_every",
    "training.sample_every",
    # the same training, but for rounding and dropout's masks
    "training.precision",
    "training.compile",
    "training.accumulation_steps",
    "training.gradient_checkpointing",
    "training.sharding",
    "training.explosion_factor",
    "training.max_bad_steps",
    "sampling.",
    "eval.",
    "data.root",
    "device",
    "plugins",
)
# What a run that has gone astray goes on with from its last good checkpoint; that is said.
_SAID_IN_TRAINING = ("optim.learning_rate", "training.grad_clip")
# What sampling and evaluation must agree on: the network, and the data it was made for.
_FIXED_FOR_MODEL = ("sde.", "model.", "data.dataset", "data.image_size", "data.channels")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically."""
    write_atomically(path, (json.dumps(value, indent=2) + "\n").encode())


def save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write named arrays to a NumPy archive that is there in full or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    write_atomically(path, buffer.getvalue())


def default_workdir(config_path: str) -> Path:
    """runs/<family>/<config name>."""
    path = Path(config_path)
    return Path("runs") / path.resolve().parent.name / path.stem


def _differences(config: Config, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    ours, theirs = dict(flatten(config)), dict(flatten(saved))
    # a key that the saved config lacks is one that a later version added, with the old behaviour as its default; but
    # an SDE's options are its own
    keys = theirs.keys() | {key for key in ours if key.startswith("sde.")}
    return {key: (ours.get(key), theirs.get(key)) for key in sorted(keys) if ours.get(key) != theirs.get(key)}


def _read_saved(workdir: Path) -> dict[str, Any] | None:
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is not a folder; choose another --workdir")
    path = workdir / "config.json"
    try:
        return parse_json(read_regular(path))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore it, or choose another --workdir") from error


def _refuse(workdir: Path, differences: dict[str, tuple[Any, Any]], keys: Sequence[str]) -> None:
    shown = "; ".join(f"{key} was {differences[key][1]!r}, is {differences[key][0]!r}" for key in keys[:3])
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    raise ValueError(f"{workdir} belongs to another config: {shown}{more}; set it back, or choose another --workdir")


def check_for_training(workdir: Path, config: Config) -> None:
    """Check that a work directory is free, or this config's; nothing is written.

    A directory in which nothing was saved yet is free for any config.

    Args:
        workdir: The directory; it need not exist.
        config: The whole config.

    Raises:
        ValueError: If it holds a run of another config, or checkpoints without a config, or a file is in the way.
    """
    saved = _read_saved(workdir)
    for name in ("checkpoints", "logs", "samples"):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise ValueError(f"{workdir / name} is not a folder; move it away, or choose another --workdir")
    trained = any((workdir / "checkpoints").glob("step_*"))
    if saved is None and trained:
        raise ValueError(f"{workdir} has checkpoints but no config.json; restore it, or choose another --workdir")
    if saved is not None and trained:
        differences = _differences(config, saved)
        keys = [key for key in differences if not key.startswith((*_FREE_IN_TRAINING, *_SAID_IN_TRAINING))]
        if keys:
            _refuse(workdir, differences, keys)


def claim_for_training(workdir: Path, config: Config) -> None:
    """Write the config into a work directory that ``check_for_training`` passed."""
    saved = _read_saved(workdir)
    if saved is not None and any((workdir / "checkpoints").glob("step_*")):
        differences = _differences(config, saved)
        for key in filter(differences.__contains__, _SAID_IN_TRAINING):
            say(f"{key} was {differences[key][1]!r}, is {differences[key][0]!r} from here on")
    if saved != json.loads(json.dumps(config.to_dict())):
        write_json(workdir / "config.json", config.to_dict())


def check_for_use(workdir: Path, config: Config) -> None:
    """Check that a work directory was trained with this config's model and data.

    Args:
        workdir: The directory.
        config: The whole config.

    Raises:
        ValueError: If it was not, or nothing was trained there.
    """
    saved = _read_saved(workdir)
    if saved is None:
        raise ValueError(f"{workdir} holds no trained run; run --mode train first, or pass its --workdir")
    differences = _differences(config, saved)
    keys = [key for key in differences if key.startswith(_FIXED_FOR_MODEL)]
    if keys:
        _refuse(workdir, differences, keys)
