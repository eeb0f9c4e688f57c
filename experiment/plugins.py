"""The text of a run's plugins: whether it is still what the run was trained with."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

from runtime.files import parse_json, read_regular
from runtime.messages import say

from .workdir import write_json

_FILE = "plugins.json"


def plugin_digests(plugins: Sequence[str]) -> dict[str, str]:
    """SHA-256 of each plugin's own file, by its name; a path's folders do not count, nor what a plugin imports.

    Args:
        plugins: Those of the config, which have been imported.
    """
    found = {}
    for plugin in map(str, plugins):
        is_file = plugin.endswith(".py")
        source = plugin if is_file else getattr(sys.modules.get(plugin), "__file__", None)
        if source is not None:
            found[Path(plugin).name if is_file else plugin] = hashlib.sha256(
                Path(source).expanduser().read_bytes()
            ).hexdigest()
    return found


def _kept(workdir: Path) -> dict[str, str]:
    try:
        return parse_json(read_regular(workdir / _FILE))
    except (FileNotFoundError, ValueError):
        # of an earlier version, or damaged: nothing can be said
        return {}


def say_changed_plugins(workdir: Path, plugins: Sequence[str]) -> None:
    """Say which plugins are not what the run was last trained with.

    Args:
        workdir: The work directory.
        plugins: Those of the config, which have been imported.
    """
    kept = _kept(workdir)
    for name, digest in plugin_digests(plugins).items():
        if kept.get(name, digest) != digest:
            say(f"plugin {name} has changed since this run was trained with it; if it defines another model, undo that")


def say_missing_plugins(workdir: Path, plugins: Sequence[str]) -> None:
    """Say which plugins a run was trained with that the config does not name.

    Args:
        workdir: The work directory.
        plugins: Those of the config, which have been imported.
    """
    missing = sorted(_kept(workdir).keys() - plugin_digests(plugins).keys())
    if missing:
        say(f"this run was trained with plugins that config.plugins does not name: {', '.join(missing)}")


def keep_plugins(workdir: Path, plugins: Sequence[str]) -> None:
    """Write down what a run is trained with, in ``plugins.json``.

    Args:
        workdir: The work directory.
        plugins: Those of the config, which have been imported.
    """
    kept = _kept(workdir)
    now = kept | plugin_digests(plugins)
    if now != kept:
        write_json(workdir / _FILE, now)
