"""Long matrices on a budget: what ``make test`` runs of them; ``make test-slow`` runs all.

Of what can fail on its own (a sampler, an SDE, a likelihood, a grid, a network, a command, a promise of the documents)
one fast case stays that would catch a mistake in it; all else is slow.
"""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def only(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of which all but the ``fast`` ones are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def one_in(step: int, values: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Rows of parameters of which all but every ``step``-th, from the first, are slow."""
    return [pytest.param(*row, marks=pytest.mark.slow if k % step else ()) for k, row in enumerate(values)]


def one_each(rows: Sequence[str], columns: Sequence[Any], *, slow: Sequence[Any] = ()) -> list[Any]:
    """All pairs of rows with columns and ``slow`` columns; but that of row k with column k, modulo, they are slow."""
    return [
        pytest.param(row, column, marks=() if columns and j == k % len(columns) else pytest.mark.slow)
        for k, row in enumerate(rows)
        for j, column in enumerate([*columns, *slow])
    ]
