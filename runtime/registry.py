"""A registry of named factories: SDEs, grids, samplers, likelihoods and losses are all looked up here."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from .options import option_names

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])


def _origin(factory: Callable[..., Any]) -> str:
    """The place where a factory was defined; partial objects carry no name of their own."""
    return f"{factory.__module__}.{getattr(factory, '__qualname__', repr(factory))}"


def choices_message(kind: str, name: str, choices: list[str]) -> str:
    """One line that names an unknown choice, the nearest known one and all the others.

    Args:
        kind: What is being chosen, such as "sampler".
        name: What was asked for.
        choices: The names that exist.

    Returns:
        The message.
    """
    close = difflib.get_close_matches(str(name), choices, n=1)
    # "lr" is far from "learning_rate" by letters
    close = close or [choice for choice in choices if "".join(word[:1] for word in choice.split("_")) == name]
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"unknown {kind} {name!r}; {hint}choices: {', '.join(choices) or 'none'}"


class Registry(Generic[T]):
    """Unique names for factories that build a ``T``.

    Args:
        kind: What is registered, as the error messages call it ("sampler").

    Example:
        >>> colours = Registry[str]("colour")
        >>> @colours.register("red")
        ... def make_red() -> str:
        ...     return "#f00"
        >>> colours.make("red")
        '#f00'
    """

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._factories: dict[str, Callable[..., T]] = {}

    def register(self, name: str) -> Callable[[F], F]:
        """Decorator that gives a class or function its name.

        Raises:
            ValueError: If the name is taken by something else.
        """

        def decorate(factory: F) -> F:
            known = self._factories.get(name)
            # the same definition again is a module being reloaded
            if known is not None and (_origin(known) != _origin(factory) or _origin(known).endswith("<lambda>")):
                raise ValueError(f"{self.kind} {name!r} is already registered by {_origin(known)}; choose another name")
            self._factories[name] = factory
            return factory

        return decorate

    def names(self) -> list[str]:
        """All registered names, sorted."""
        return sorted(self._factories)

    def described(self) -> dict[str, str]:
        """All registered names, sorted, each with the first line of its docstring."""
        lines = {name: (inspect.getdoc(self._factories[name]) or "").split("\n")[0] for name in self.names()}
        return {name: line.strip() for name, line in lines.items()}

    def get(self, name: str) -> Callable[..., T]:
        """The factory of that name.

        Raises:
            ValueError: If the name is unknown; the message lists the choices.
        """
        try:
            return self._factories[name]
        except (KeyError, TypeError):
            raise ValueError(choices_message(self.kind, name, self.names())) from None

    def make(self, name: str, **kwargs: Any) -> T:
        """Build what ``name`` stands for.

        Args:
            name: A registered name.
            **kwargs: Passed to the factory.

        Raises:
            ValueError: If the name is unknown or an option is; the message lists what exists.
        """
        factory = self.get(name)
        accepted, are_all = option_names(factory)
        for option in kwargs:
            if are_all and option not in accepted:
                raise ValueError(choices_message(f"option of {self.kind} {name!r}:", option, accepted))
        needed = [p.name for p in inspect.signature(factory).parameters.values() if p.default is p.empty]
        missing = [option for option in needed if option in accepted and option not in kwargs]
        if missing:
            raise ValueError(f"{self.kind} {name!r} needs {', '.join(missing)}; pass {missing[0]}=...")
        try:
            return factory(**kwargs)
        except TypeError as error:
            given = ", ".join(f"{option}={value!r}" for option, value in kwargs.items() if len(repr(value)) < 40)
            raise ValueError(f"{self.kind} {name!r} cannot be built ({given}): {error}; check their types") from error
