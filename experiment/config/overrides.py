"""Settings of the command line, ``--config.section.key=value``, read as the type of what they replace."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from runtime.messages import say
from runtime.processes.rendezvous import place
from sde_lib import available_sdes, sde_defaults

from .keys import EXAMPLES, IMAGE_SIZE, OPEN_SECTIONS, RENAMED, fitting, say_renamed, unknown_key

if TYPE_CHECKING:
    from .files import Config

_SDE_NAME = "--config.sde.name="


def apply_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Set what the command line says.

    Another SDE comes without the options that the config file gives the former one; those of the command line are its
    own. Sections that are open, such as ``sde``, take any key: what builds from them knows its options.

    Args:
        config: The locked config, which is changed.
        overrides: Arguments such as ``--config.training.batch_size=64``.

    Raises:
        ValueError: If an override is unknown or of another type.
    """
    names = [override.removeprefix(_SDE_NAME) for override in overrides if override.startswith(_SDE_NAME)]
    if names and names[-1] != (former := config.sde.get("name", names[-1])):
        options = [key for key in config.sde if key != "name"]
        config.sde = ConfigDict({"name": names[-1]}).lock()
        if options and place()[0] == 0:
            say(f"config.sde.name is {names[-1]} instead of {former}, whose {', '.join(options)} are left out")
    for override in overrides:
        _apply(config, override)


def _apply(config: Config, override: str) -> None:
    if not override.startswith("--config.") or "=" not in override:
        raise ValueError(f"unknown argument {override!r}; overrides look like --config.training.batch_size=64")
    dotted, text = override.removeprefix("--config.").split("=", 1)
    if dotted in RENAMED:
        say_renamed(dotted)
        dotted = RENAMED[dotted]
    *parents, leaf = dotted.split(".")
    section: Any = config
    for depth, name in enumerate([*parents, leaf]):
        here = ".".join(parents[:depth])
        is_open = here in OPEN_SECTIONS and depth == len(parents)
        if not isinstance(section, ConfigDict) or (name not in section and not is_open):
            raise unknown_key(config, here, name)
        if depth < len(parents):
            section = section[name]
    old = section.get(leaf)
    if isinstance(old, ConfigDict):
        raise ValueError(f"config.{dotted} is a section, got {text!r}; set one of {', '.join(sorted(old.keys()))}")
    if ".".join(parents) in OPEN_SECTIONS:
        # defaults of plugins' SDEs, and of backbones, are not known here
        name = config.sde.get("name") if parents == ["sde"] else None
        default = (sde_defaults(name) if name in available_sdes() else {}).get(leaf, old)
        with section.unlocked(), section.ignore_type():
            section[leaf] = literal(text) if default is None else parse_as(dotted, text, default)
    else:
        section[leaf] = parse_as(dotted, text, old)


def literal(text: str) -> Any:
    """A Python number, tuple, True, None and the like; else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError):
        word = text.strip()
        if word.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return float(word)
        return {"true": True, "false": False}.get(word.lower(), word)


def parse_as(dotted: str, text: str, default: Any) -> Any:
    """Read ``text`` as the type of ``default``.

    Raises:
        ValueError: If it is of another type.
    """
    if isinstance(default, str):
        return text
    if dotted == IMAGE_SIZE:
        sides = fitting(_items(text), (0,))
        if sides is None or len(sides) not in (1, 2):
            raise ValueError(
                f"config.{dotted} must be one number, or height and width as in 32,48, got {text!r}; set it so"
            )
        return sides[0] if len(set(sides)) == 1 else sides
    default = EXAMPLES.get(dotted, default)
    value = _items(text, of=type(default[0]) if default else None) if isinstance(default, tuple) else literal(text)
    if isinstance(default, bool):
        value = {"1": True, "0": False}.get(text, value)
    found = fitting(value, default)
    if found is None:
        example = "a,b" if default == () else repr(default)
        raise ValueError(
            f"config.{dotted} must be of type {type(default).__name__}, got {text!r}; write one such as {example}"
        )
    return found


def _items(text: str, *, of: type | None = None) -> Any:
    """A Python tuple, or numbers or names separated by commas; of ``str``, numbers are names."""
    if of is float:
        return tuple(literal(item) for item in text.strip().strip("()[]").split(",") if item.strip())
    items = tuple(item.strip() for item in text.split(",") if item.strip())
    if text.lstrip().startswith(("(", "[")) or (text.strip() and not items):
        return literal(text)
    numbers = all(item.removeprefix("-").isdecimal() for item in items) and of is not str
    return tuple(map(int, items)) if numbers else items
