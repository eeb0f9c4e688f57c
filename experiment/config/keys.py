"""Keys and types that a config must have, those of ``configs/default.py``, and keys that were renamed."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from runtime.messages import say
from runtime.processes.rendezvous import place
from runtime.registry import choices_message
from sde_lib import available_sdes, sde_defaults

if TYPE_CHECKING:
    from .files import Config

# What is built from these says itself which options it has: the SDE, and the backbone.
OPEN_SECTIONS = ("sde", "model.network", "model.first_stage")
# Keys of earlier versions, and the ones that took their places.
RENAMED = {
    "model.noise_input": "model.time_input",
    "training.time_sampling": "training.step_sampling",
    "eval.vlb_samples_per_image": "eval.vlb_steps_per_image",
}
# Values of ``model.backbone`` that stand for a model which is described elsewhere.
STAND_INS = ("checkpoint", "control", "teacher")
# The one key of two types: a number, or a tuple of two.
IMAGE_SIZE = "data.image_size"
# Keys whose default, an empty tuple, does not say what they hold.
EXAMPLES: dict[str, Any] = {
    "sampling.guidance_interval": (0.2, 2.0),
    "cascade.stages": ("vp/digits_2", "vp/digits_4_sr"),
    "cascade.noise_t": (0.1, 0.1),
    "cascade.guidance_weight": (2.0, 1.0),
    "distillation.stages": (8, 4, 2, 1),
    "control.also": ("runs/control/mnist_lowres:0.5",),
    "training.ema_profiles": (0.05, 0.1),
    "interpolate.times": (0.25, 0.5),
    "progressive.times": (0.9, 0.5),
}


def unknown_key(config: Config, where: str, name: str) -> ValueError:
    """The error of a key that a section does not have, with the nearest one; it may be another section's.

    Args:
        config: A config with all keys.
        where: The section, such as "optim"; "" for the config itself.
        name: The key that is not in it.
    """
    section: Any = config
    for part in filter(None, where.split(".")):
        section = section[part] if isinstance(section, ConfigDict) else None
    keys = sorted(section.keys()) if isinstance(section, ConfigDict) else []
    kind = f"key of {'.'.join(filter(None, ('config', where)))}:"
    elsewhere = [key for key in _leaves(config) if key.split(".")[-1] == name]
    # a model that is the checkpoint's has the key, though the config does not
    of_checkpoint = keys == ["backbone"]
    if elsewhere and not of_checkpoint and not difflib.get_close_matches(name, keys, n=1):
        return ValueError(f"unknown {kind} {name!r}; did you mean config.{elsewhere[0]}?")
    return ValueError(choices_message(kind, name, keys))


def _leaves(section: Any, prefix: str = "") -> Iterator[str]:
    for key, value in section.items():
        if isinstance(value, ConfigDict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def with_new_names(config: dict[str, Any]) -> dict[str, Any]:
    """A saved config, as JSON has it, with the keys of earlier versions under their present names."""
    renamed = dict(config)
    for old, new in RENAMED.items():
        (section, old_leaf), (_, new_leaf) = old.split("."), new.split(".")
        values = renamed.get(section)
        if isinstance(values, dict) and old_leaf in values:
            # a config that has both was written by hand: the present name counts
            renamed[section] = {new_leaf: values[old_leaf]} | {k: v for k, v in values.items() if k != old_leaf}
    return renamed


def rename_keys(config: Config, defaults: Config | None) -> None:
    """Move the keys of earlier versions in a config file to their present names, and say so.

    Raises:
        ValueError: If the file sets a key under both names.
    """
    for old, new in RENAMED.items():
        (name, old_leaf), (_, leaf) = old.split("."), new.split(".")
        section = config.get(name)
        if not isinstance(section, ConfigDict) or old_leaf not in section:
            continue
        value = section[old_leaf]
        if defaults is not None and section.get(leaf, value) not in (value, defaults[name][leaf]):
            both = f"{value!r} and {section[leaf]!r}"
            raise ValueError(
                f"config.{old} is called config.{new} now, which is set too: {both}; leave one of them out"
            )
        say_renamed(old)
        with section.unlocked(), section.ignore_type():
            section[leaf] = value
            del section[old_leaf]


def say_renamed(old: str) -> None:
    """Say which key has taken the place of an earlier one, once a job."""
    if place()[0] == 0:
        say(f"config.{old} is called config.{RENAMED[old]} now; it is read as that")


def check_keys(config: Config, defaults: Config) -> None:
    """Refuse keys that the defaults do not have, keys that are missing, and values of another type.

    Whole numbers become floats, and lists tuples, where the default is one. A config whose ``model.backbone`` is
    "checkpoint", "control" or "teacher" need not say more of ``model`` and ``sde``.

    Args:
        config: What a config file gives; it is changed as said.
        defaults: The default config.

    Raises:
        ValueError: In one line, naming the first such key, and the nearest one or the default.
    """
    model = config.get("model")
    leaves = isinstance(model, ConfigDict) and model.get("backbone") in STAND_INS
    _check_unknown(config, defaults, defaults, "")
    _check_values(config, defaults, "", may_lack=("model", "sde") if leaves else ())
    _check_sde_values(config.sde)


def _check_unknown(config: Config, defaults: Config, root: Config, where: str) -> None:
    for key, value in config.items():
        dotted = f"{where}.{key}" if where else key
        if key not in defaults:
            raise unknown_key(root, where, key)
        if isinstance(value, ConfigDict) and isinstance(defaults[key], ConfigDict) and dotted not in OPEN_SECTIONS:
            _check_unknown(value, defaults[key], root, dotted)


def _check_values(config: Config, defaults: Config, where: str, *, may_lack: tuple[str, ...]) -> None:
    for key, default in defaults.items():
        dotted = f"{where}.{key}" if where else key
        section = isinstance(default, ConfigDict)
        if key not in config:
            if where in may_lack:
                continue
            what = f"has no section {dotted}" if section else f"has no config.{dotted}, whose default is {default!r}"
            raise ValueError(f"the config {what}; start from configs.default.get_default_config()")
        value = config[key]
        if section:
            if not isinstance(value, ConfigDict):
                raise ValueError(
                    f"config.{dotted} must be a section, got {value!r}; start from configs.default.get_default_config()"
                )
            _check_values(value, default, dotted, may_lack=may_lack)
            continue
        two = dotted == IMAGE_SIZE and isinstance(value, (tuple, list)) and len(value) == 2
        found = fitting(value, (0, 0) if two else EXAMPLES.get(dotted, default))
        if found is None:
            raise ValueError(
                f"config.{dotted} must be of type {type(default).__name__}, got {value!r}; its default is {default!r}"
            )
        if type(found) is not type(value):
            with config.ignore_type():
                config[key] = found


def _check_sde_values(sde: Config) -> None:
    """Refuse an SDE's options of another type than their defaults; names that it does not have are for it to refuse."""
    name = sde.get("name")
    for key, default in (sde_defaults(name) if name in available_sdes() else {}).items():
        value = sde.get(key, default)
        if default is not None and fitting(value, default) is None:
            kind = type(default).__name__
            raise ValueError(f"config.sde.{key} must be of type {kind}, got {value!r}; its default is {default!r}")


def fitting(value: Any, default: Any) -> Any:
    """The value in the type of the default; None if it is of another."""
    if isinstance(default, float):
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        return float(value) if number else None
    if isinstance(default, tuple):
        items = tuple(value) if isinstance(value, (tuple, list)) else (None,)
        if default and isinstance(default[0], float):
            numbers = tuple(fitting(item, 0.0) for item in items)
            return None if None in numbers else numbers
        # an empty default does not say which it holds
        kind = type((default or items or (0,))[0])
        return items if kind in (int, str) and all(type(item) is kind for item in items) else None
    return value if type(value) is type(default) else None
