"""Long matrices on a budget: what ``make test`` runs of them; ``make test-slow`` runs all."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pytest


def only(fast: Collection[Any], values: Iterable[Any]) -> list[Any]:
    """Parameters of which all but the ``fast`` ones are slow."""
    return [value if value in fast else pytest.param(value, marks=pytest.mark.slow) for value in values]


def one_each(rows: Sequence[str], columns: Sequence[Any], *, slow: Sequence[Any] = ()) -> list[Any]:
    """All pairs of rows with columns and ``slow`` columns; but that of row k with column k, modulo, they are slow."""
    return [
        pytest.param(row, column, marks=() if columns and j == k % len(columns) else pytest.mark.slow)
        for k, row in enumerate(rows)
        for j, column in enumerate([*columns, *slow])
    ]
