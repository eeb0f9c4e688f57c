"""Whole numbers among what callers pass, also those of NumPy and torch."""

from __future__ import annotations

import operator
from typing import Any


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
