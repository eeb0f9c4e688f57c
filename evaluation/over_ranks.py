"""Work dealt to the processes of a job: who does which unit, and how rank 0 gets all results."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence

from runtime.processes.ranks import Ranks
from runtime.signals import Interrupted

_POLL = 0.02  # seconds


def deal(
    ranks: Ranks,
    groups: Sequence[Sequence[str]],
    work: Callable[[str], bytes],
    take: Callable[[str, bytes], None],
) -> None:
    """Do all units, group g on the g-th process, counted round.

    Args:
        ranks: The processes.
        groups: Names of units, each used once in the job; one process does those of a group, in order.
        work: Does a unit; called on its process.
        take: Takes a unit's name and result; called on its process, and on rank 0 for all units.
    """
    rank, world = ranks.rank, ranks.world
    others = range(1, world) if ranks.first else ()
    awaited = [[unit for group in groups[other::world] for unit in group] for other in others]

    def collect() -> bool:
        """Take what the other processes have done; whether that is all of it."""
        for units in awaited:
            while units:
                data = ranks.take(units[0])
                if data is None:
                    break
                take(units[0], data)
                del units[0]
        return not any(awaited)

    for group in groups[rank::world]:
        for unit in group:
            data = work(unit)
            take(unit, data)
            if not ranks.first:
                ranks.post(unit, data)
            collect()
    while not collect():
        time.sleep(_POLL)


@contextlib.contextmanager
def says_what_is_kept(said: Callable[[], str]) -> Iterator[None]:
    """Turn Ctrl-C, and a disk that is full, into a line that says what they leave."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(said()) from None
    except OSError as error:
        raise OSError(f"{error}: {said()}") from error
