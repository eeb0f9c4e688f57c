"""Settings of other projects under the names that those projects give them."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

from runtime.files import parse_json, read_regular
from runtime.registry import choices_message

Config = Mapping[str, Any] | Path | str
"""Another project's settings by name, the path of a JSON file that holds them, or flags as on a command line."""

_MOST_BYTES = 2**24
_TRUE, _FALSE = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")


def read_json(path: Path, what: str) -> dict[str, Any]:
    """Read an object of a JSON file.

    Args:
        path: The file.
        what: What it should be, for the message.

    Raises:
        ValueError: In one line: there is no such file, or it holds something else.
    """
    try:
        return parse_json(read_regular(path, most=_MOST_BYTES))
    except OSError as error:
        raise ValueError(f"{what} {path} cannot be read ({error.strerror or error}); check the path") from error
    except ValueError as error:
        raise ValueError(f"{what} {path} is no JSON ({error}); fetch it again") from error


def parse_flags(text: str) -> dict[str, str]:
    """Flags as a model card gives them, ``--image_size 64 --class_cond True``, as names and texts.

    Raises:
        ValueError: A word has no flag before it, or a flag no value.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"config {text!r} cannot be split into flags ({error}); write --name value") from error
    words = [piece for word in words for piece in (word.split("=", 1) if word.startswith("--") else [word])]
    flags: dict[str, str] = {}
    for name, value in zip_longest(words[::2], words[1::2], fillvalue="--"):
        if not name.startswith("--"):
            raise ValueError(f"config must be flags such as '--image_size 64', got {name!r}; or pass a JSON file")
        if value.startswith("--"):
            raise ValueError(f"flag {name} of the config has no value; write {name} VALUE")
        flags[name.removeprefix("--")] = value
    return flags


class Settings:
    """Another project's settings, taken one by one: what nobody took is unknown, and refused.

    Args:
        config: The settings.

    Raises:
        ValueError: In one line, if it cannot be read.
    """

    def __init__(self, config: Config) -> None:
        if isinstance(config, str) and config.strip() and not config.strip().startswith("--"):
            config = Path(config)
        if isinstance(config, Path):
            config = read_json(config, "config")
        self.values: dict[str, Any] = parse_flags(config) if isinstance(config, str) else dict(config)
        self._known: set[str] = set()

    def take(self, name: str, default: Any = None) -> Any:
        """The value as it is, or the default."""
        self._known.add(name)
        return self.values.get(name, default)

    def _needed(self, name: str, default: Any) -> Any:
        value = self.take(name, default)
        if value is None:
            raise ValueError(f"config must say {name}, which the checkpoint does not; add it")
        return value

    def _wrong(self, name: str, value: Any, expected: str) -> ValueError:
        return ValueError(f"config's {name} must be {expected}, got {value!r}; correct it")

    def integer(self, name: str, default: int | None = None, *, least: int | None = None) -> int:
        """A whole number, of at least ``least``.

        Raises:
            ValueError: If it is none, or missing without a default.
        """
        value = self._needed(name, default)
        try:
            if not isinstance(value, bool) and int(value) == float(value) and (least is None or int(value) >= least):
                return int(value)
        except (TypeError, ValueError, OverflowError):
            pass
        raise self._wrong(name, value, "a whole number" + ("" if least is None else f" of at least {least}"))

    def number(self, name: str, default: float) -> float:
        """A number.

        Raises:
            ValueError: If it is none.
        """
        value = self.take(name, default)
        try:
            return float(value)
        except (TypeError, ValueError):
            raise self._wrong(name, value, "a number") from None

    def flag(self, name: str, default: bool | None = None) -> bool:
        """True or False, also as text.

        Raises:
            ValueError: If it is neither, or missing without a default.
        """
        value = self._needed(name, default)
        text = str(value).lower()
        if text not in _TRUE + _FALSE:
            raise self._wrong(name, value, "True or False")
        return text in _TRUE

    def choice(self, name: str, default: str | None, choices: Sequence[str]) -> str:
        """One of some words.

        Raises:
            ValueError: If it is another, and then the choices are listed; or missing without a default.
        """
        value = str(self._needed(name, default))
        if value not in choices:
            raise ValueError(choices_message(f"{name} of the config", value, sorted(choices)))
        return value

    def numbers(self, name: str, default: Sequence[float] | None = None) -> tuple[float, ...]:
        """Numbers, in a list or as text with commas; whole ones as integers.

        Raises:
            ValueError: If it is something else, or missing without a default.
        """
        value = self._needed(name, default)
        try:
            given = value.split(",") if isinstance(value, str) else value
            found = [float(one) for one in given if str(one).strip()]
            return tuple(int(number) if number == int(number) else number for number in found)
        except (TypeError, ValueError, OverflowError):
            raise self._wrong(name, value, "numbers separated by commas") from None

    def integers(self, name: str, default: Sequence[int] | None = None) -> tuple[int, ...]:
        """Whole numbers, in a list or as text with commas.

        Raises:
            ValueError: If it is something else, or missing without a default.
        """
        found = self.numbers(name, default)
        if any(not isinstance(number, int) for number in found):
            raise self._wrong(name, self.take(name), "whole numbers separated by commas")
        return tuple(int(number) for number in found)

    def words(self, name: str, default: Sequence[str]) -> list[str]:
        """Words in a list.

        Raises:
            ValueError: If it is something else.
        """
        value = self.take(name, default)
        if not isinstance(value, list | tuple) or not all(isinstance(word, str) for word in value):
            raise self._wrong(name, value, "a list of words")
        return list(value)

    def refuse_unless(self, **expected: Any) -> None:
        """Refuse settings that differ from the only value that is known here.

        Raises:
            ValueError: If one does.
        """
        for name, only in expected.items():
            allowed = only if isinstance(only, tuple) else (only,)
            value = self.take(name, allowed[0])
            if value not in allowed and str(value) not in [str(one) for one in allowed]:
                raise ValueError(f"config's {name}={value!r} is not supported; only {name}={allowed[0]!r} is")

    def agree(self, name: str, found: Any) -> Any:
        """Refuse a setting that contradicts what a checkpoint says by itself.

        Args:
            name: The setting, which need not be there.
            found: A number, word, truth value, or tuple of numbers, found in the checkpoint.

        Returns:
            ``found``.

        Raises:
            ValueError: If they differ.
        """
        said = self.take(name)
        if said is None:
            return found
        if (self.numbers(name) != found) if isinstance(found, tuple) else (str(said) != str(found)):
            raise ValueError(f"config's {name} is {said!r}, but the checkpoint has {found!r}; correct one of them")
        return found

    def attention(self, name: str, attends: Mapping[int, bool]) -> tuple[int, ...]:
        """The resolutions with attention, which a checkpoint says by itself.

        Args:
            name: The setting, which need not be there, and may name resolutions that no level has.
            attends: Whether a level attends, by its resolution.

        Raises:
            ValueError: If they differ.
        """
        found = tuple(size for size, attend in attends.items() if attend)
        said = self.integers(name, found)
        if {size for size in said if size in attends} != set(found):
            raise ValueError(f"config's {name} is {said}, but the checkpoint has {found}; correct one of them")
        return found

    def ignore(self, names: Iterable[str]) -> None:
        """Take settings that say nothing of the model."""
        self._known.update(names)

    def finish(self) -> None:
        """Refuse what nobody took.

        Raises:
            ValueError: If there is such a setting; the known ones are listed.
        """
        for name in self.values:
            if name not in self._known:
                raise ValueError(choices_message("setting of the config", name, sorted(self._known)))
