"""Samplers by name."""

from __future__ import annotations

import inspect
from typing import Any

from runtime.readable import constructor_options
from runtime.registry import Registry, choices_message

from .base import Sampler

SAMPLERS: Registry[Sampler] = Registry("sampler")
register_sampler = SAMPLERS.register


def available_samplers() -> list[str]:
    """Names that ``make_sampler`` takes."""
    return SAMPLERS.names()


def make_sampler(name: str, **kwargs: Any) -> Sampler:
    """Build a sampler by name.

    Args:
        name: One of ``available_samplers()``.
        **kwargs: Its options, such as ``num_steps`` and ``grid``.

    Raises:
        ValueError: If the name, or an option, is unknown or out of range.
    """
    factory = SAMPLERS.get(name)
    options, are_all = constructor_options(factory) if inspect.isclass(factory) else ([], False)
    for option in kwargs:
        if are_all and option not in options:
            raise ValueError(choices_message(f"option of sampler {name!r}:", option, options))
    return SAMPLERS.make(name, **kwargs)
