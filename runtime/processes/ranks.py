"""The processes of a ``torchrun`` job: what they tell each other, and how all of them end when one fails."""

from __future__ import annotations

import _thread
import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING

import torch

from ..signals import Interrupted
from .launch import find_store, place

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_PIECE = 4 * 2**20  # bytes; a TCPStore refuses values above 8 MiB
_POLL, _BEAT = 0.02, 2.0  # seconds
_GRACE = 3.0  # seconds in which processes that fail alike leave the word to rank 0
_WORD = 1.0  # seconds in which the one that has it writes a line
_FAILED, _INTERRUPTED, _REASON = "failed", "interrupted", "reason"
# which main.py says in a line; others are a mistake in some code, of which the kind matters
_EXPECTED = (ValueError, OSError, FloatingPointError, MemoryError, RuntimeError, KeyboardInterrupt)


class RankError(RuntimeError):
    """An error of a process other than rank 0, which names its rank."""


class AnotherRankError(RuntimeError):
    """Another process failed; it says why, this one ends without a word."""


class LostRankError(RuntimeError):
    """Another process is gone, and this one does not know why."""


def prints_error(error: BaseException) -> bool:
    """True on the one process that prints an error."""
    if isinstance(error, (RankError, AnotherRankError)):
        return isinstance(error, RankError)
    # what fails before the processes are connected fails alike on all of them
    return place()[1] == 1 or os.environ.get("LOCAL_RANK", "0") == "0"


class Ranks:
    """A job of one process or more, connected while the ``with`` block runs.

    All that the processes share is a key-value store. There are no collectives: what a rank has measured is a few
    float64 vectors, and a process that waits in a collective does not notice that another has failed. Here whoever
    waits looks about: an error on one rank ends the others, with one line in all, and so does silence (each process
    gives a sign of life every few seconds, however long its batches take).

    Args:
        rank: Number of this process, from 0.
        world: Number of processes.
        store: What they share; None for one process alone.
        silence: Seconds without a sign of life after which a process counts as lost.

    Attributes:
        called_off: Whether the main thread was interrupted, as by Ctrl-C, because another process failed.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Store | None = None, *, silence: float = 120.0) -> None:
        self.rank, self.world, self._silence = rank, world, silence
        self.store = self._store = store
        self._ended = threading.Event()
        self._pulse = threading.Thread(target=self._beat, daemon=True)
        self._heard: dict[int, tuple[bytes, float]] = {}
        self._in_main = self.called_off = False

    @classmethod
    def from_environment(cls) -> Ranks:
        """The job that torchrun's environment describes; one process without it.

        Raises:
            RuntimeError: If the processes do not find each other.
        """
        rank, world = place()
        return cls() if world == 1 else cls(rank, world, find_store())

    @property
    def first(self) -> bool:
        """True on rank 0, which prints and writes."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: of "cuda", the GPU that its number on this machine gives."""
        if self.world == 1 or device.type != "cuda" or device.index is not None:
            return device
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())

    def __enter__(self) -> Ranks:
        if self._store is not None:
            # another thread cannot be interrupted
            self._in_main = threading.current_thread() is threading.main_thread()
            self._pulse.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._store is None:
            return
        try:
            self._ended.set()
            self._pulse.join()
        except KeyboardInterrupt as late:
            # on its way when the work had ended
            error = error or late
        silent = False
        try:
            if self.called_off and isinstance(error, LostRankError):
                # its store may be gone too
                raise AnotherRankError from error
            if self.called_off and isinstance(error, KeyboardInterrupt) and not self._stopped_elsewhere():
                raise AnotherRankError from error
            if isinstance(error, AnotherRankError):
                raise error
            if error is not None and not (isinstance(error, Interrupted) and error.together):
                self._fail(error)
        except AnotherRankError:
            silent = True
            raise
        finally:
            self._leave()
            if silent:
                # torchrun ends the others as soon as one has ended, and one of them is about to say why
                time.sleep(_WORD)

    def _fail(self, error: BaseException) -> None:
        """Tell the others; raise what this process is to say, if it was the first to fail."""
        assert self._store is not None
        stopped = isinstance(error, KeyboardInterrupt)
        try:
            # who knows the reason says it, and not who merely lost the connection to it
            known = isinstance(error, LostRankError) and self._store.check([_REASON])
            deadline = time.monotonic() + (2 * _GRACE if known else 0 if self.first or stopped else _GRACE)
            while time.monotonic() < deadline and not self._store.check([_FAILED]):
                time.sleep(_POLL)
            ours = f"{self.rank} {_INTERRUPTED if stopped else ''}"
            spoke_first = self._store.compare_set(_FAILED, "", ours).decode() == ours
        except RuntimeError as lost:
            # with the store's process: rank 0's own, or the launcher
            raise RankError(
                f"rank {self.rank}: the other processes are gone ({lost}); look for what ended them, "
                "then the same command goes on"
            ) from error
        if stopped:
            return
        if not spoke_first:
            raise AnotherRankError from error
        if not self.first:
            # off the line of rank 0's progress bar
            print(file=sys.stderr)
            kind = "" if isinstance(error, _EXPECTED) else f"{type(error).__name__}: "
            raise RankError(f"rank {self.rank}: {kind}{error}") from error

    def announce(self, error: BaseException) -> None:
        """Let it be known that this process ends for a reason of its own, before its connections close.

        The others, which see no more than that, then leave the word to it.
        """
        # it need not be interrupted any more
        self._ended.set()
        if self._store is not None and not isinstance(error, (AnotherRankError, LostRankError)):
            with contextlib.suppress(RuntimeError):
                self._store.set(_REASON, "1")
                # an answer means that it has arrived
                self._store.check([_REASON])

    def _leave(self) -> None:
        """Say goodbye; rank 0, with whom the store may end, waits a moment for the others' goodbye."""
        assert self._store is not None
        try:
            self._store.set(f"left/{self.rank}", "1")
            # an answer means that all that was sent before has arrived
            self._store.check([f"left/{self.rank}"])
            others = [f"left/{rank}" for rank in range(1, self.world)] if self.first else []
            deadline = time.monotonic() + 2 * _GRACE
            while time.monotonic() < deadline and not all(self._store.check([key]) for key in others):
                time.sleep(_POLL)
        except RuntimeError:
            return

    def _beat(self) -> None:
        """Give signs of life, and stop the work when another process fails: its batch may take an hour yet."""
        assert self._store is not None
        count = 0
        while not self._ended.wait(_BEAT):
            count += 1
            try:
                self._store.set(f"alive/{self.rank}", str(count))
                self.called_off = self._in_main and self._store.check([_FAILED])
            except RuntimeError:
                return
            if self.called_off and not self._ended.is_set():
                _thread.interrupt_main()
                return

    def _stopped_elsewhere(self) -> bool:
        """True if Ctrl-C ended another process."""
        return self._store is not None and self._store.get(_FAILED).decode().endswith(_INTERRUPTED)

    def check(self) -> None:
        """Find out whether the others are well.

        Raises:
            AnotherRankError: If one of them failed.
            KeyboardInterrupt: If one of them was stopped by Ctrl-C.
            LostRankError: If one of them is lost.
        """
        store = self._store
        if store is None:
            return
        if store.check([_FAILED]):
            if self._stopped_elsewhere():
                raise KeyboardInterrupt
            raise AnotherRankError
        now = time.monotonic()
        for other in range(1, self.world) if self.first else (0,):
            beat = store.get(f"alive/{other}") if store.check([f"alive/{other}"]) else b""
            before, since = self._heard.setdefault(other, (beat, now))
            if beat != before:
                self._heard[other] = (beat, now)
            elif now - since > self._silence and not store.check([f"left/{other}"]):
                raise LostRankError(
                    f"rank {other} has not been heard of for {now - since:.0f} s; "
                    "look for what ended it, then the same command goes on"
                )

    def wait_until(self, done: Callable[[], bool]) -> None:
        """Wait, looking about; see ``check``."""
        while not done():
            self.check()
            time.sleep(_POLL)

    def post(self, key: str, data: bytes) -> None:
        """Put bytes of any length where the other processes find them."""
        if self._store is None:
            return
        pieces = [data[begin : begin + _PIECE] for begin in range(0, len(data), _PIECE)]
        for number, piece in enumerate(pieces):
            self._store.set(f"{key}/{number}", piece)  # type: ignore[arg-type]
        self._store.set(key, str(len(pieces)))

    def collect(self, key: str, *, keep: bool = False) -> bytes | None:
        """The message of another process, or None as long as there is none.

        Args:
            key: Its key.
            keep: Leave it there for others.
        """
        if self._store is None or not self._store.check([key]):
            return None
        parts = [f"{key}/{number}" for number in range(int(self._store.get(key)))]
        data = b"".join(self._store.get(part) for part in parts)
        if not keep:
            for part in [key, *parts]:
                self._store.delete_key(part)
        return data

    def share(self, key: str, value: Callable[[], bytes]) -> bytes:
        """Rank 0's value, on every process; the others wait for it.

        Args:
            key: A name that is used once.
            value: Called on rank 0 alone.
        """
        if self.first:
            data = value()
            self.post(key, data)
            return data
        found: list[bytes] = []

        def arrived() -> bool:
            data = self.collect(key, keep=True)
            found.extend([] if data is None else [data])
            return data is not None

        self.wait_until(arrived)
        return found[0]
