"""Config files and overrides from the command line, with errors of one line."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict, FrozenConfigDict

from .keys import check_keys, rename_keys
from .overrides import apply_overrides, literal

# a ConfigDict's keys are known at run time alone: type checkers see Any
if TYPE_CHECKING:
    Config = Any
else:
    Config = ConfigDict


def _import_file(path: Path, name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is not a Python file; pass a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ValueError(f"{path} cannot be imported: {type(error).__name__}: {error}; fix the file") from error
    return module


def load_config(path: str, overrides: Sequence[str] = (), *, defaults: Config | None = None) -> Config:
    """Read a config file and apply overrides.

    Args:
        path: A Python file with ``get_config()``, such as ``configs/vp/digits.py``.
        overrides: Arguments such as ``--config.training.batch_size=64``.
        defaults: ``configs.default.get_default_config()``, whose keys and types the file must have; None checks none.

    Returns:
        The config, locked against new keys.

    Raises:
        ValueError: If the file does not exist or has no ``get_config``, or a key is unknown, missing or of another
            type.
    """
    file = Path(path)
    if not file.is_file():
        if file.is_dir():
            raise ValueError(f"config {path} is a folder; pass a .py file in it")
        known = sorted(p.as_posix() for p in file.parent.glob("*.py") if not p.name.startswith("_"))
        beside = f"there are {', '.join(known)}" if known else "see configs/ for those that come with the project"
        raise ValueError(f"config file {path} does not exist; {beside}")
    module = _import_file(file, f"_config_{file.stem}")
    if not callable(getattr(module, "get_config", None)):
        raise ValueError(f"config file {path} has no get_config(); define one that returns a ConfigDict")
    try:
        config = module.get_config()
    except (Exception, SystemExit) as error:
        raise ValueError(f"get_config() of {path} failed: {type(error).__name__}: {error}; fix the file") from error
    if not isinstance(config, ConfigDict):
        raise ValueError(f"get_config() of {path} must return a ConfigDict, got {type(config).__name__}; fix the file")
    if isinstance(config, FrozenConfigDict):
        config = ConfigDict(config.to_dict())
    rename_keys(config, defaults)
    if defaults is not None:
        check_keys(config, defaults)
    config.lock()
    apply_overrides(config, overrides)
    return config


def plain(value: Any) -> Any:
    """Turn lists into tuples, all the way down."""
    return tuple(plain(one) for one in value) if isinstance(value, (list, tuple)) else value


def parse_options(text: str) -> dict[str, Any]:
    """Read "eta=0.5, variance=large" as keyword arguments.

    Raises:
        ValueError: If an item is not name=value.
    """
    options: dict[str, Any] = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, separator, value = item.partition("=")
        if not separator or not name.strip().isidentifier():
            raise ValueError(f"options must look like 'eta=0.5, variance=large', got {item!r}; write name=value")
        options[name.strip()] = literal(value)
    return options


def import_plugins(plugins: Sequence[str]) -> None:
    """Import user modules, for what they register: names of modules, or paths of .py files.

    Raises:
        ValueError: If one cannot be imported.
    """
    for plugin in map(str, plugins):
        if plugin.endswith(".py"):
            path = Path(os.path.expanduser(plugin))
            if not path.is_file():
                raise ValueError(f"plugin {plugin} does not exist; pass the path of a .py file or a module's name")
            _import_file(path, f"_plugin_{path.stem}")
            continue
        sys.path.insert(0, os.getcwd())
        try:
            importlib.import_module(plugin)
        except (Exception, SystemExit) as error:
            raise ValueError(
                f"plugin {plugin} cannot be imported: {type(error).__name__}: {error}; "
                "pass a module that Python finds, or the path of a .py file"
            ) from error
        finally:
            sys.path.remove(os.getcwd())


def flatten(config: Config | dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Pairs of dotted key and value, in order."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def data_root(config: Config) -> str:
    """``data.root``, else $SDE_DATA, else downloads/."""
    return os.path.expanduser(config.data.root or os.environ.get("SDE_DATA") or "downloads")
