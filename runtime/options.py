"""Options of constructors: their names, representations that show them, and whole numbers among them."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

_LONGEST = 60


def option_names(factory: Callable[..., Any]) -> tuple[list[str], bool]:
    """List the names of a factory's parameters; of a class with those that its ``**kwargs`` hand to its bases.

    Returns:
        The names, and whether they are all: not where the last ``**kwargs`` take anything.
    """
    calls = [factory]
    if inspect.isclass(factory):
        calls = [vars(base)["__init__"] for base in inspect.getmro(factory)[:-1] if "__init__" in vars(base)]
    names: dict[str, None] = {}
    for call in calls:
        parameters = list(inspect.signature(call).parameters.values())
        # of a constructor without self
        parameters = parameters if call is factory else parameters[1:]
        names |= {p.name: None for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(names), True
    return list(names), not calls


class ShowsOptions:
    """Base class whose representation is the constructor's call, as far as options are kept as attributes.

    Example:
        >>> class Line(ShowsOptions):
        ...     def __init__(self, *, slope: float = 1.0) -> None:
        ...         self.slope = slope
        >>> Line(slope=2.0)
        Line(slope=2.0)
    """

    def __repr__(self) -> str:
        """Class and options; those that are long, such as tables, are left out."""
        kept = vars(self)
        shown = {name: repr(kept[name]) for name in option_names(type(self))[0] if name in kept}
        options = [f"{name}={text}" for name, text in shown.items() if len(text) <= _LONGEST and " at 0x" not in text]
        return f"{type(self).__name__}({', '.join(options)})"


def whole_number(name: str, value: Any, *, least: int = 1, fix: str) -> int:
    """Read an argument that must be a whole number, as a Python int.

    Args:
        name: The argument, for the message.
        value: Anything that is an integer by itself, such as ``np.int64(5)``; no float, no bool.
        least: The least that it may be.
        fix: The end of the message.

    Raises:
        ValueError: If it is no whole number, or below ``least``.
    """
    try:
        # a bool is an int to Python, and is one to nobody who counts
        number = None if type(value).__name__.startswith("bool") else operator.index(value)
    except (TypeError, ValueError):
        number = None
    if number is None or number < least:
        raise ValueError(f"{name} must be at least {least}, a whole number, got {value!r}; {fix}")
    return number
