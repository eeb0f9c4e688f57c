"""Samplers by name."""

from __future__ import annotations

from typing import Any

from sde_lib import Registry

from .base import Sampler

_SAMPLERS: Registry[Sampler] = Registry("sampler")
register_sampler = _SAMPLERS.register


def available_samplers() -> list[str]:
    """Names that ``make_sampler`` takes."""
    return _SAMPLERS.names()


def make_sampler(name: str, **kwargs: Any) -> Sampler:
    """Build a sampler by name.

    Args:
        name: One of ``available_samplers()``.
        **kwargs: Its options, such as ``num_steps`` and ``grid``.

    Raises:
        ValueError: If the name, or an option, is unknown or out of range.
    """
    return _SAMPLERS.make(name, **kwargs)
