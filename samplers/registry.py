"""Samplers by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from runtime.registry import Registry, choices_message

from .base import Sampler

SAMPLERS: Registry[Sampler] = Registry("sampler")
register_sampler = SAMPLERS.register


def available_samplers() -> list[str]:
    """Names that ``make_sampler`` takes."""
    return SAMPLERS.names()


def _options(factory: Callable[..., Sampler]) -> list[str] | None:
    """Names of a class's options, with those that its ``**kwargs`` hand to its bases; None where anything goes."""
    names: list[str] = []
    for cls in inspect.getmro(factory) if inspect.isclass(factory) else ():
        if "__init__" not in vars(cls) or cls is object:
            continue
        _, *parameters = inspect.signature(cls.__init__).parameters.values()
        names += [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None


def make_sampler(name: str, **kwargs: Any) -> Sampler:
    """Build a sampler by name.

    Args:
        name: One of ``available_samplers()``.
        **kwargs: Its options, such as ``num_steps`` and ``grid``.

    Raises:
        ValueError: If the name, or an option, is unknown or out of range.
    """
    options = _options(SAMPLERS.get(name))
    for option in kwargs:
        if options is not None and option not in options:
            raise ValueError(choices_message(f"option of sampler {name!r}:", option, options))
    return SAMPLERS.make(name, **kwargs)
