"""Rendezvous of the processes of a ``torchrun`` job."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]


def place() -> tuple[int, int]:
    """Rank and number of processes, as torchrun tells them; (0, 1) without it."""
    rank, world = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return (int(rank), int(world)) if rank.isdigit() and world.isdigit() else (0, 1)


def find_store() -> Store:
    """The key-value store that torchrun's environment describes, empty at first.

    Raises:
        RuntimeError: If the processes do not find each other.
    """
    # builds of PyTorch without it measure in one process
    from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]
    from torch.distributed.rendezvous import rendezvous

    try:
        store, _, _ = next(rendezvous("env://", timeout=timedelta(minutes=5)))
    except (ValueError, OSError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise RuntimeError(
            f"the processes did not find each other ({reason}); check MASTER_ADDR and MASTER_PORT, or use torchrun"
        ) from error
    if os.environ.get("GROUP_WORLD_SIZE") != "1":
        # between machines the counts of restarts may differ; c10d's store is new every time
        return store
    # with a fixed port, torchrun keeps what processes left in its store for those that it starts anew
    return PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
