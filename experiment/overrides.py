"""Settings of the command line, ``--config.section.key=value``, read as the type of what they replace."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict

from runtime.messages import say
from runtime.processes.launch import place
from sde_lib import available_sdes, sde_defaults

from .config_keys import IMAGE_SIZE, OPEN_SECTIONS, RENAMED, say_renamed, unknown_key

if TYPE_CHECKING:
    from .config import Config

_SDE_NAME = "--config.sde.name="


def apply_overrides(config: Config, overrides: Sequence[str]) -> None:
    """Set what the command line says.

    Another SDE comes without the options that the config file gives the former one; those of the command line are its
    own. Sections that are open, ``sde`` and ``model.network``, take any key: what builds from them knows its options.

    Args:
        config: The locked config, which is changed.
        overrides: Arguments such as ``--config.training.batch_size=64``.

    Raises:
        ValueError: If an override is unknown or of another type.
    """
    names = [override.removeprefix(_SDE_NAME) for override in overrides if override.startswith(_SDE_NAME)]
    if names:
        _choose_sde(config, names[-1])
    for override in overrides:
        _apply(config, override)


def _choose_sde(config: Config, name: str) -> None:
    former = config.sde.get("name", name)
    options = [key for key in config.sde if key != "name"]
    if former == name:
        return
    config.sde = ConfigDict({"name": name}).lock()
    if options and place()[0] == 0:
        say(f"config.sde.name is {name} instead of {former}, whose {', '.join(options)} are left out")


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
        with section.unlocked(), section.ignore_type():
            section[leaf] = _parse_open(dotted, text, _known_options(config, parents).get(leaf, old))
    else:
        section[leaf] = parse_as(dotted, text, old)


def _known_options(config: Config, parents: list[str]) -> dict[str, Any]:
    """Defaults of the SDE's options; those of plugins, and of backbones, are not known here."""
    name = config.sde.get("name") if parents == ["sde"] else None
    return sde_defaults(name) if name in available_sdes() else {}


def _parse_open(dotted: str, text: str, default: Any) -> Any:
    """Read ``text`` as the type of the default, or, where that says nothing, as what it looks like."""
    return literal(text) if default is None else parse_as(dotted, text, default)


def literal(text: str) -> Any:
    """A Python number, tuple, True, None and the like; else the text itself."""
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        word = text.strip()
        if word.lower().lstrip("+-") in ("nan", "inf", "infinity"):
            return float(word)
        return {"true": True, "false": False}.get(word.lower(), word)


def parse_as(dotted: str, text: str, default: Any) -> Any:
    """Read ``text`` as the type of ``default``.

    Raises:
        ValueError: If it is of another type.
    """
    if dotted == IMAGE_SIZE:
        return _parse_size(dotted, text)
    kind = type(default)
    example = "a,b" if default == () else repr(default)
    fix = f"config.{dotted} must be of type {kind.__name__}, got {text!r}; write one such as {example}"
    try:
        if kind is bool:
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if kind is int:
            return int(text.replace("_", ""))
        if kind is float:
            return float(text)
        if kind is tuple:
            return _parse_tuple(text, default)
    except (KeyError, ValueError, TypeError, SyntaxError):
        raise ValueError(fix) from None
    return text


def _parse_tuple(text: str, default: tuple[Any, ...]) -> tuple[Any, ...]:
    """A Python tuple, or items separated by commas."""
    if text.lstrip().startswith(("(", "[")):
        items = tuple(ast.literal_eval(text))
    else:
        items = tuple(item.strip() for item in text.split(",") if item.strip())
        if text.strip() and not items:
            raise ValueError("commas alone")
    # an empty default does not say which it holds, and no name is a number
    named = isinstance(default[0], str) if default else not all(str(item).isdecimal() for item in items)
    if named:
        if not all(isinstance(item, str) for item in items):
            raise ValueError("items must be names")
        return items
    if any(isinstance(item, float) for item in items):
        raise ValueError("items must be whole numbers")
    return tuple(int(item) for item in items)


def _parse_size(dotted: str, text: str) -> int | tuple[int, int]:
    """One number for squares, or height and width."""
    try:
        sides = _parse_tuple(text, (0,))
        height, width = sides * 2 if len(sides) == 1 else sides
    except (ValueError, TypeError, SyntaxError):
        raise ValueError(
            f"config.{dotted} must be one number, or height and width as in 32,48, got {text!r}; set it so"
        ) from None
    return height if height == width else (height, width)
