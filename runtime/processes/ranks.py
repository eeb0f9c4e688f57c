"""The ranks of a ``torchrun`` job: what they tell each other, and how all of them end when one fails."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from ..signals import Interrupted
from .rendezvous import find_store, place

if TYPE_CHECKING:
    from torch.distributed import Store  # pyright: ignore[reportPrivateImportUsage]

_CHUNK = 4 * 2**20  # bytes; a TCPStore refuses values above 8 MiB
_POLL, _WATCH = 0.02, 1.0  # seconds
_GRACE = 3.0  # seconds that the others leave to rank 0, which mostly fails for the same reason
_LAST_WORD = 0.5  # seconds in which the rank that speaks writes its line
_FAILED, _LEFT = "failed", b"left"


class LostRankError(RuntimeError):
    """Another rank is gone, and this one does not know why."""


class Ranks:
    """A job of one process or more, connected while the ``with`` block runs.

    The ranks share a key-value store. A thread of each writes a sign of life there every second, and ends its process
    when another rank has failed or fallen silent, whatever the main thread waits for: a collective that the failed rank
    will never join, or a batch of an hour. Files are complete or absent at any moment, so nothing is lost by that.

    Args:
        rank: Number of this process, from 0.
        world: Number of processes.
        store: The store that they share; None for one process alone.
        silence: Seconds without a sign of life after which a rank counts as lost.
    """

    def __init__(self, rank: int = 0, world: int = 1, store: Store | None = None, *, silence: float = 50.0) -> None:
        self.rank, self.world, self.store, self._silence = rank, world, store, silence
        self._left = threading.Event()
        self._watcher: threading.Thread | None = None

    @classmethod
    def from_environment(cls) -> Ranks:
        """The job that torchrun's environment describes; one process without it.

        Raises:
            RuntimeError: If the processes do not find each other.
        """
        rank, world = place()
        return cls() if world == 1 else cls(rank, world, find_store())

    def part(self, name: str) -> Ranks:
        """The same processes for a part of the work, whose keys are its own: one of several runs in one job."""
        if self.store is None:
            return self
        # builds of PyTorch without it have one process
        from torch.distributed import PrefixStore  # pyright: ignore[reportPrivateImportUsage]

        return Ranks(self.rank, self.world, PrefixStore(name, self.store))

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
        if self.store is not None:
            self._watcher = threading.Thread(target=self._watch, args=(self.store,), daemon=True)
            self._watcher.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._watcher is None or self.store is None:
            return
        self._left.set()
        self._watcher.join()
        if error is not None:
            # its traceback says why
            with contextlib.suppress(RuntimeError):
                self.store.compare_set(_FAILED, "", f"{self.rank} 2")
        self._leave()

    def _leave(self) -> None:
        """Say goodbye; rank 0, with which the store may end, waits a moment for the others' goodbye."""
        with contextlib.suppress(RuntimeError):
            self._sign(_LEFT)
            deadline = time.monotonic() + 2 * _GRACE
            others = range(1, self.world) if self.first else ()
            while any(self._sign_of(rank) != _LEFT for rank in others) and time.monotonic() < deadline:
                time.sleep(_POLL)

    # ------------------------------------------------------------------------------------------------- failures

    def speaks(self, error: BaseException, code: int) -> bool:
        """Tell the one rank that is to say why the job ends; where another says it, this process ends here.

        Rank 0 speaks for what fails alike everywhere, and a rank that knows the reason before one that merely lost its
        connection to it.

        Args:
            error: The reason why this rank ends.
            code: Its exit code, with which the others then end, too.
        """
        if self.store is None or (isinstance(error, Interrupted) and error.together):
            return self.first
        # another that fails meanwhile ends this process
        time.sleep(2 * _GRACE if isinstance(error, LostRankError) else 0 if self.first else _GRACE)
        try:
            return self._fails_first(code)
        except RuntimeError as gone:
            if isinstance(error, RuntimeError):
                self._end(gone)
            return True

    def _fails_first(self, code: int) -> bool:
        """Note that this rank ends with a code; where another did so before, end with that one's."""
        assert self.store is not None
        ours = f"{self.rank} {code}"
        first = self.store.compare_set(_FAILED, "", ours).decode()
        if first == ours:
            return True
        # torchrun ends all others as soon as one has ended
        time.sleep(_LAST_WORD)
        self._leave()
        os._exit(int(first.split()[1]))

    def _watch(self, store: Store) -> None:
        """Give signs of life; end this process when another failed, fell silent, or the store is gone."""
        heard: dict[int, tuple[bytes, float]] = {}
        count = 0
        try:
            while not self._left.wait(_WATCH):
                count += 1
                self._sign(str(count).encode())
                if store.check([_FAILED]) and not store.get(_FAILED).startswith(f"{self.rank} ".encode()):
                    self._fails_first(2)
                now = time.monotonic()
                for other in range(1, self.world) if self.first else (0,):
                    sign = self._sign_of(other)
                    if sign == _LEFT or sign != heard.get(other, (None, now))[0]:
                        heard[other] = (sign, now)
                    elif now - heard[other][1] > self._silence and self._fails_first(2):
                        self._end(f"rank {other} has not been heard of for {self._silence:.0f} s")
        except RuntimeError as gone:
            time.sleep(2 * _GRACE)
            if not self._left.is_set():
                self._end(gone)

    def _end(self, reason: str | RuntimeError) -> NoReturn:
        """End this process, of which another is lost, with a line."""
        if isinstance(reason, RuntimeError):
            reason = f"the other processes are gone ({str(reason).splitlines()[0]})"
        line = f"error: rank {self.rank}: {reason}; look for what ended that, then the same command goes on"
        print(f"\n{line}", file=sys.stderr, flush=True)
        self._leave()
        os._exit(2)

    def _sign(self, sign: bytes) -> None:
        assert self.store is not None
        self.store.set(f"sign/{self.rank}", sign)  # type: ignore[arg-type]
        # an answer means that all that was sent before has arrived
        self.store.check([_FAILED])

    def _sign_of(self, rank: int) -> bytes:
        assert self.store is not None
        return self.store.get(f"sign/{rank}") if self.store.check([f"sign/{rank}"]) else b""

    # ------------------------------------------------------------------------------------------------- messages

    def post(self, key: str, data: bytes) -> None:
        """Put bytes of any length under a key that is used once."""
        if self.store is None:
            return
        chunks = [data[begin : begin + _CHUNK] for begin in range(0, len(data), _CHUNK)]
        for number, chunk in enumerate(chunks):
            self.store.set(f"{key}/{number}", chunk)  # type: ignore[arg-type]
        self.store.set(key, str(len(chunks)))

    def find(self, key: str) -> bytes | None:
        """The bytes that another rank posted, or None as long as there are none."""
        if self.store is None or not self.store.check([key]):
            return None
        return b"".join(self.store.get(f"{key}/{number}") for number in range(int(self.store.get(key))))

    def take(self, key: str) -> bytes | None:
        """The same as ``find``; what was found is deleted."""
        data = self.find(key)
        if self.store is not None and data is not None:
            for name in [key, *(f"{key}/{number}" for number in range(-(-len(data) // _CHUNK)))]:
                self.store.delete_key(name)
        return data

    def share(self, key: str, value: Callable[[], Any]) -> Any:
        """Rank 0's value, on every rank, as JSON gives it back; the others wait for it.

        Args:
            key: A name that is used once.
            value: Called on rank 0 alone.
        """
        if self.first:
            data = json.dumps(value()).encode()
            self.post(key, data)
        else:
            while (found := self.find(key)) is None:
                time.sleep(_POLL)
            data = found
        return json.loads(data)


ALONE = Ranks()
