"""What the processes of a job settle among themselves before they begin."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from .precision import NetworkMode
from .ranks import Ranks

T = TypeVar("T")


def load_in_turn(ranks: Ranks, key: str, load: Callable[[], T]) -> T:
    """Load on every process; on rank 0 first, so that what is downloaded is so once.

    Args:
        ranks: The processes.
        key: A name that is used once.
        load: Loads.
    """
    found: list[T] = []

    def first() -> bytes:
        found.append(load())
        return b"loaded"

    ranks.share(key, first)
    return found[0] if found else load()


def pick_together(
    ranks: Ranks, pick: Callable[..., NetworkMode], recorded: dict[str, Any] | None = None
) -> NetworkMode:
    """Rank 0's choice of how the network computes, for all processes, whatever their machines are good at.

    Args:
        ranks: The processes.
        pick: ``pick_mode`` with all its arguments but ``recorded``.
        recorded: How the run began, which rank 0 keeps to.
    """
    picked = ranks.share("mode", lambda: json.dumps(pick(recorded=recorded).recorded()).encode())
    return pick(recorded=recorded if ranks.first else json.loads(picked))
