"""Types of command-line options, so that what cannot work is said before anything is computed."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import torch


def whole(least: int, most: int = 10**6) -> Callable[[str], int]:
    """A whole number from ``least`` to ``most``."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be a whole number from {least} to {most}, got {text!r}")
        return value

    return parse


def device(text: str) -> str:
    """The name of a device that works here."""
    try:
        if torch.device(text).type not in ("cpu", "cuda"):
            raise RuntimeError("it does not do float64")
        torch.empty(1, device=text)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used ({reason}); use cpu or cuda") from error
    return text


def some_of(choices: tuple[str, ...]) -> Callable[[str], list[str]]:
    """Some of the choices, separated by commas."""

    def parse(text: str) -> list[str]:
        found = text.split(",")
        if not set(found) <= set(choices):
            raise argparse.ArgumentTypeError(f"must be some of {','.join(choices)}, got {text!r}")
        return found

    return parse


def output(text: str) -> str:
    """A file that can be written; its folder is made if need be."""
    path = Path(text)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # what is there is not touched before there is something to write
        with path.open("ab"):
            pass
        if path.stat().st_size == 0:
            path.unlink()
    except OSError as error:
        reason = error.strerror or error
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written ({reason}); name another file") from error
    return text
