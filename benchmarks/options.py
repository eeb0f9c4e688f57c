"""Types of command-line options, so that what cannot work is said before anything is computed."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from experiment.build import named_device
from runtime.files import one_line
from runtime.registry import choices_message


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return int(text)

    return parse


def listed(kind: type[int | float]) -> Callable[[str], list[float]]:
    """Numbers separated by commas."""

    def parse(text: str) -> list[float]:
        try:
            found = [kind(word) for word in text.split(",")]
        except ValueError:
            found = []
        if not found or not all(map(math.isfinite, found)):
            raise argparse.ArgumentTypeError(f"must be numbers separated by commas, got {text!r}; such as 1,2")
        return found

    return parse


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """Some of the names that are known, separated by commas."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        for name in found:
            if name not in known:
                raise argparse.ArgumentTypeError(choices_message("name", name, list(known)))
        return found

    return parse


def run_benchmark(main: Callable[[], None]) -> None:
    """Run a benchmark; what it refuses is said in one line, with SDE_TRACEBACK=1 by a traceback."""
    try:
        main()
    except (ValueError, OSError, FloatingPointError) as error:
        if os.environ.get("SDE_TRACEBACK"):
            raise
        raise SystemExit(f"error: {one_line(error)}") from error


def device(text: str) -> str:
    """The name of a device that works here."""
    try:
        return str(named_device(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def output(text: str) -> Path:
    """A file to write; its folder is made at once."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written ({error.strerror}); name another file") from error
    return path
