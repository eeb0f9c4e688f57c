"""Timing side by side, and tables of what was found."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

Work = Callable[[], Any]
K = TypeVar("K")
T = TypeVar("T")


def in_turn(measures: Mapping[K, Callable[[], T]], rounds: int) -> dict[K, list[T]]:
    """Every measure once a round, one after the other, so that what else the machine does falls on all of them."""
    found: dict[K, list[T]] = {label: [] for label in measures}
    for _ in range(rounds):
        for label, measure in measures.items():
            found[label].append(measure())
    return found


def seconds(work: Work, *, processor: bool = False) -> float:
    """The time of some work; ``processor`` asks for that of the processor, which other programs do not take."""
    clock = time.process_time if processor else time.perf_counter
    # a GPU, if one is in use, may still be at what it was given
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    began = clock()
    work()
    wait()
    return clock() - began


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median and ends."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows in Markdown, a column for each of their keys; what a row lacks is left empty."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = [columns, *([_cell(row.get(column, "")) for column in columns] for row in rows)]
    head, *body = (f"| {' | '.join(line)} |" for line in lines)
    return "\n".join([head, "|" + "---|" * len(columns), *body])


def _cell(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
