"""The work directory: where a run keeps its config, checkpoints, logs and results."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np

from runtime.files import one_line, parse_json, read_regular, write_atomically
from sde_lib import sde_defaults

from .config import Config, flatten, with_new_names

# What may change between two commands on one work directory without making it another run.
FREE_IN_TRAINING = (
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
    "interpolate.",
    "progressive.",
    "sampling.",
    "eval.",
    "restore.",
    "segment.",
    "data.root",
    "data.first_stage",
    "data.text_encoder",
    "data.text_options",
    # the frozen model is known by its fingerprint, and the rest is of sampling and measuring
    "control.base",
    "control.scale",
    "control.decay",
    "control.also",
    "control.guided",
    # the teacher, too
    "distillation.teacher",
    "device",
    "plugins",
    # where the first weights came from: they are in the first checkpoint
    "source.",
)
# What a run that has gone astray, or is to be longer, goes on with from its last good checkpoint; that is said.
SAID_IN_TRAINING = ("optim.learning_rate", "optim.decay_steps", "training.grad_clip")
# What sampling and evaluation must agree on: the network, and the data it was made for.
_FIXED_FOR_MODEL = (
    *("sde.", "model.", "data.dataset", "data.image_size", "data.channels"),
    *("data.options", "data.downscale", "data.given_frames", "data.condition", "control.hint_widths"),
    *("distillation.stages", "distillation.stage_steps"),
)
# What else a checkpoint of step 0 holds: the loss's memory, and the optimizer's settings. All else of an imported run
# is free until its first step is done.
_IN_FIRST_CHECKPOINT = (
    "training.loss",
    "training.step_sampling",
    "optim.name",
    "optim.beta1",
    "optim.beta2",
    "optim.eps",
    "optim.weight_decay",
)


# of SDEs whose options config.json did not say in full
_EARLIER_DEFAULTS = {"ncsn": {"num_steps": 10, "sigma_max": 1.0}}


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


def _with_sde_in_full(config: dict[str, Any], earlier: dict[str, dict[str, Any]] | None = None) -> dict[str, Any]:
    """A config that says all options of its SDE, so that a default that changes is seen to."""
    sde = config.get("sde", {})
    if "name" not in sde:
        return config
    defaults = sde_defaults(sde["name"]) | (earlier or {}).get(sde["name"], {})
    plain = {key: value for key, value in defaults.items() if isinstance(value, (bool, int, float, str))}
    return config | {"sde": plain | sde}


def read_whole_config(workdir: Path) -> dict[str, Any] | None:
    """``read_config``, with what it leaves to its SDE's defaults, as they were when it was written."""
    saved = read_config(workdir)
    return None if saved is None else _with_sde_in_full(saved, _EARLIER_DEFAULTS)


def config_differences(config: Config, saved: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted keys in which a config differs from a saved one, each with the config's value and the saved one's."""
    ours = dict(flatten(_with_sde_in_full(config.to_dict())))
    theirs = dict(flatten(_with_sde_in_full(saved, _EARLIER_DEFAULTS)))
    # a key that the saved config lacks is one that a later version added, with the old behaviour as its default; but
    # an SDE's options, and a backbone's, are its own
    keys = theirs.keys() | {key for key in ours if key.startswith(("sde.", "model.network."))}
    return {key: (ours.get(key), theirs.get(key)) for key in sorted(keys) if ours.get(key) != theirs.get(key)}


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The config that a work directory was begun with, as JSON has it; None if there is none.

    Raises:
        ValueError: If it cannot be read.
    """
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"{workdir} is not a folder; choose another --workdir")
    path = workdir / "config.json"
    try:
        return with_new_names(parse_json(read_regular(path)))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({one_line(error)}); restore it, or choose another --workdir") from error


def in_words(differences: dict[str, tuple[Any, Any]], form: str = "{} was {}, is {}") -> str:
    """The first three of ``config_differences``, each as a key, the saved value and the config's."""
    three = [(key, one_line(repr(was), 60), one_line(repr(now), 60)) for key, (now, was) in differences.items()][:3]
    more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
    return "; ".join(form.format(*one) for one in three) + more


def _refuse(workdir: Path, differences: dict[str, tuple[Any, Any]]) -> None:
    """Refuse another config, if there are differences."""
    if differences:
        said = in_words(differences)
        raise ValueError(f"{workdir} belongs to another config: {said}; set it back, or choose another --workdir")


def source_of(saved: dict[str, Any] | None) -> dict[str, Any] | None:
    """The origin of a run's first weights, if they were not drawn at random: ``config.source``."""
    source = (saved or {}).get("source")
    return source if isinstance(source, dict) and source.get("name") else None


def _is_as_imported(workdir: Path, saved: dict[str, Any]) -> bool:
    found = [path.name for path in (workdir / "checkpoints").glob("step_*")]
    return source_of(saved) is not None and found == ["step_00000000"]


def check_for_training(workdir: Path, config: Config) -> None:
    """Check that a work directory is free, or this config's; nothing is written.

    A directory in which nothing was saved yet is free for any config, and one that holds nothing but the weights that
    it began with for any way of training it that its first checkpoint allows.

    Args:
        workdir: The directory; it need not exist.
        config: The whole config.

    Raises:
        ValueError: If it holds a run of another config, or checkpoints without a config, or a file is in the way.
    """
    saved = read_config(workdir)
    for name in ("checkpoints", "logs", "samples"):
        if (workdir / name).exists() and not (workdir / name).is_dir():
            raise ValueError(f"{workdir / name} is not a folder; move it away, or choose another --workdir")
    trained = any((workdir / "checkpoints").glob("step_*"))
    if saved is None and trained:
        raise ValueError(f"{workdir} has checkpoints but no config.json; restore it, or choose another --workdir")
    if saved is not None and trained:
        differences = config_differences(config, saved)
        fixed = (*_FIXED_FOR_MODEL, *_IN_FIRST_CHECKPOINT) if _is_as_imported(workdir, saved) else ("",)
        free = (*FREE_IN_TRAINING, *SAID_IN_TRAINING)
        found = differences.items()
        _refuse(workdir, {key: pair for key, pair in found if key.startswith(fixed) and not key.startswith(free)})


def claim_for_training(workdir: Path, config: Config, *, imported: bool = False) -> None:
    """Write the config into a work directory that ``check_for_training`` passed.

    Args:
        workdir: The directory.
        config: The whole config.
        imported: Whether its ``source`` is where the weights come from; else what the directory says of that stays.
    """
    saved = read_config(workdir)
    source = None if imported else source_of(saved)
    whole = _with_sde_in_full(config.to_dict()) | ({} if source is None else {"source": source})
    if saved != json.loads(json.dumps(whole)):
        write_json(workdir / "config.json", whole)


def check_for_use(workdir: Path, config: Config) -> None:
    """Check that a work directory was trained with this config's model and data.

    Args:
        workdir: The directory.
        config: The whole config.

    Raises:
        ValueError: If it was not, or nothing was trained there.
    """
    saved = read_config(workdir)
    if saved is None:
        raise ValueError(f"{workdir} holds no trained run; run --mode train first, or pass its --workdir")
    differences = config_differences(config, saved)
    _refuse(workdir, {key: pair for key, pair in differences.items() if key.startswith(_FIXED_FOR_MODEL)})
