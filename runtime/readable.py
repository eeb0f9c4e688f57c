"""Readable representations of objects that are their options."""

from __future__ import annotations

import inspect
from typing import Any

_LONGEST = 60


class Readable:
    """Base class whose representation is the constructor's call, as far as options are kept as attributes.

    Example:
        >>> class Line(Readable):
        ...     def __init__(self, *, slope: float = 1.0) -> None:
        ...         self.slope = slope
        >>> Line(slope=2.0)
        Line(slope=2.0)
    """

    def __repr__(self) -> str:
        """Class and options; those that are long, such as tables, are left out."""
        kept = vars(self)
        shown = {name: repr(kept[name]) for name in constructor_options(type(self))[0] if name in kept}
        options = [f"{name}={text}" for name, text in shown.items() if len(text) <= _LONGEST and " at 0x" not in text]
        return f"{type(self).__name__}({', '.join(options)})"


def constructor_options(cls: type[Any]) -> tuple[list[str], bool]:
    """List the names of a constructor's parameters, with those that its ``**kwargs`` hand to its bases.

    Args:
        cls: The class.

    Returns:
        The names, and whether they are all: not where the last ``**kwargs`` take anything.
    """
    names: list[str] = []
    for base in inspect.getmro(cls):
        if "__init__" not in vars(base) or base is object:
            continue
        _, *parameters = inspect.signature(base.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return list(dict.fromkeys(names)), True
    return list(dict.fromkeys(names)), False
