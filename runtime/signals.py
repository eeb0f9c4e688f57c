"""Stopping a run on request: Ctrl-C, and the signals by which clusters announce that a machine is taken away."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# SIGUSR1, by which Slurm warns (--signal=USR1@120), does not exist everywhere
PREEMPTION_SIGNALS = tuple(
    getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if isinstance(getattr(signal, name, None), signal.Signals)
)


class Interrupted(KeyboardInterrupt):
    """Someone asked to stop; everything is saved.

    Attributes:
        signal_number: The signal; shells report 128 more than it.
        together: Whether all processes of a job stop with this one, of their own accord.
    """

    def __init__(self, message: str, signal_number: int = signal.SIGINT, *, together: bool = False) -> None:
        super().__init__(message)
        self.signal_number, self.together = int(signal_number), together


class StopRequest:
    """A request to stop after the current step, with the signal that made it."""

    def __init__(self) -> None:
        self.signal_number = 0

    def __bool__(self) -> bool:
        return self.signal_number != 0


@contextmanager
def stop_on_signals(*, launched: bool = False) -> Iterator[StopRequest]:
    """Turn SIGINT, SIGTERM and SIGUSR1 into a request to stop after the step.

    A second Ctrl-C stops at once. SIGTERM comes more than once where several layers of a cluster pass it on, so that
    no number of them keeps the checkpoint from being written.

    Args:
        launched: By torchrun, which passes a Ctrl-C on that the terminal has sent to this process already: then no
            second one stops at once either.

    Yields:
        The request. In other threads than the main one, signals cannot be caught: it stays empty.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(number: int, _frame: FrameType | None) -> None:
        first, request.signal_number = not request, request.signal_number or number
        if number == signal.SIGINT and not launched:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.write(2, b"\nstopping after this step; Ctrl-C again to stop at once, without saving\n")
        elif first:
            os.write(2, f"\n{signal.Signals(number).name}: stopping after this step\n".encode())

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, *PREEMPTION_SIGNALS)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
