"""The settings and captions that a run was trained with, and which settings changed at which step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data import AnyDataset
from experiment.config import RENAMED, Config, flatten
from experiment.workdir import SAID_IN_TRAINING, read_config
from runtime.messages import say

_RECORDED = ("training.", "optim.")


def training_settings(config: Config | dict[str, Any]) -> dict[str, Any]:
    """Dotted keys and values of ``config.training`` and ``config.optim``."""
    return {key: value for key, value in flatten(config) if key.startswith(_RECORDED)}


@dataclass
class SettingsHistory:
    """The settings of a run and their changes, as checkpoints hold them.

    Attributes:
        settings: Those of the last step done, by dotted key; empty where a checkpoint, an old one, does not say.
        changes: ``{"step": steps done before it, "key": ..., "from": ..., "to": ...}``, in the order of the steps.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    changes: list[dict[str, Any]] = field(default_factory=list)

    def go_on(self, settings: dict[str, Any], step: int) -> dict[str, tuple[Any, Any]]:
        """Go on with other settings.

        Args:
            settings: Those of the steps to come.
            step: Number of steps done; before the first, settings are no change.

        Returns:
            Old and new value of each key that changes.
        """
        # a key that was not there is a later version's, whose default is the old behaviour
        pairs = {key: (self.settings.get(key, value), value) for key, value in settings.items()}
        changed = {key: (old, new) for key, (old, new) in pairs.items() if old != new and step > 0}
        self.changes += [{"step": step, "key": key, "from": old, "to": new} for key, (old, new) in changed.items()]
        self.settings = settings
        return changed

    def state(self) -> dict[str, Any]:
        """The entry of a checkpoint."""
        return {"settings": self.settings, "changes": self.changes}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Undo ``state``; old checkpoints have neither, or keys of an earlier name."""
        settings: dict[str, Any] = state.get("settings", {})
        changes: list[dict[str, Any]] = state.get("changes", [])
        self.settings = {RENAMED.get(key, key): value for key, value in settings.items()}
        self.changes = [change | {"key": RENAMED.get(change["key"], change["key"])} for change in changes]


def note_changes(history: SettingsHistory, config: Config, workdir: Path, step: int) -> None:
    """Record changed settings for the checkpoints to come; print a line for those that change the weights.

    Args:
        history: What the run was trained with.
        config: What it goes on with.
        workdir: Its work directory, whose ``config.json`` stands in for an old checkpoint that does not say.
        step: Number of steps done.
    """
    if not history.settings:
        history.settings = training_settings(read_config(workdir) or {})
    changed = history.go_on(training_settings(config), step)
    for key in filter(changed.__contains__, SAID_IN_TRAINING):
        old, new = changed[key]
        say(f"{key} was {old!r}, is {new!r} from here on")


def check_captions(theirs: str, dataset: AnyDataset, workdir: Path) -> str:
    """Refuse to go on with other captions than a run began with.

    Args:
        theirs: ``Dataset.captions_digest`` as it began; "" of a run that begins, or of an earlier version.
        dataset: The train split.
        workdir: The work directory.

    Returns:
        The digest of the captions.

    Raises:
        ValueError: In one line, if they are others.
    """
    if theirs and theirs != dataset.captions_digest:
        raise ValueError(
            f"{workdir} was trained on other captions than those that {dataset.name} {dataset.split} has now; put "
            "their files back as they were, or choose another --workdir"
        )
    return dataset.captions_digest


def history_mismatch(state: Mapping[str, Any]) -> str | None:
    """The reason why ``SettingsHistory.restore`` cannot read a checkpoint's state, or None."""
    settings, changes, plain = state.get("settings", {}), state.get("changes", []), (str, bool, int, float)
    kinds = {"step": int, "key": str, "from": plain, "to": plain}

    def is_plain(value: Any) -> bool:
        return all(map(is_plain, value)) if isinstance(value, list) else isinstance(value, plain)

    def is_change(change: Any) -> bool:
        known = isinstance(change, dict) and change.keys() == kinds.keys()
        return known and all(isinstance(change[key], kind) for key, kind in kinds.items())

    if not isinstance(settings, dict) or not all(map(is_plain, settings.values())):
        return "its settings are not keys and values"
    if not isinstance(changes, list) or not all(map(is_change, changes)):
        return "its changes are not steps, keys and values"
    return None
