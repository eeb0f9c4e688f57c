"""Batches of an interrupted measurement, or of samples, kept in files."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiment.workdir import write_json
from runtime.files import parse_json, write_atomically

from .measurement import Values

_FINGERPRINT = "fingerprint.json"


class PartialResults:
    """The measured batches of one likelihood, a file each, complete or absent.

    A file begins with a checksum of its values, its number and the fingerprint: it is good for one measurement alone.

    Args:
        folder: Where they are, ``eval/partial/<likelihood>``.
        fingerprint: All that the values depend on.
        done: What is done with a batch, as messages call it.
    """

    def __init__(self, folder: Path, fingerprint: dict[str, Any], *, done: str = "measured") -> None:
        self.folder, self._fingerprint, self._done = folder, fingerprint, done
        self.digest = hashlib.sha256(json.dumps(fingerprint, sort_keys=True).encode()).hexdigest()

    def _path(self, k: int) -> Path:
        return self.folder / f"{k:06d}.batch"

    def _checksum(self, k: int, payload: bytes) -> bytes:
        return hashlib.sha256(f"{self.digest} {k} ".encode() + payload).hexdigest().encode() + b"\n"

    def encode(self, k: int, values: Values) -> bytes:
        """A batch as bytes."""
        buffer = io.BytesIO()
        np.savez(buffer, **values)  # type: ignore[arg-type]
        return self._checksum(k, buffer.getvalue()) + buffer.getvalue()

    def decode(self, k: int, data: bytes) -> Values:
        """Undo ``encode``.

        Raises:
            ValueError: If the bytes are damaged, or of another batch or measurement.
        """
        head, payload = data[:65], data[65:]
        if head != self._checksum(k, payload):
            raise ValueError(f"batch {k} does not match its checksum; measure it again")
        with np.load(io.BytesIO(payload), allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}

    def keep(self, k: int, data: bytes) -> None:
        """Write an encoded batch, unless it is there."""
        if not (self.folder / _FINGERPRINT).is_file():
            write_json(self.folder / _FINGERPRINT, self._fingerprint)
        if not self._path(k).is_file():
            write_atomically(self._path(k), data)

    def read(self, k: int) -> Values:
        """A batch that is kept.

        Raises:
            ValueError: If it is damaged, or of another measurement.
            OSError: If it is not there.
        """
        return self.decode(k, self._path(k).read_bytes())

    def load(self, num_batches: int) -> tuple[dict[int, Values], list[str]]:
        """Read what ``good`` finds.

        Args:
            num_batches: How many batches there are.

        Returns:
            The good batches by number, and a line for each reason why others are not used.
        """
        numbers, notes = self.good(num_batches)
        return {k: self.read(k) for k in numbers}, notes

    def good(
        self, num_batches: int, fits: Callable[[int, Values], bool] = lambda k, values: True
    ) -> tuple[list[int], list[str]]:
        """Find what is kept; what is of another measurement is deleted, and so is what is damaged or does not fit.

        Args:
            num_batches: How many batches there are.
            fits: Whether the values of a batch are those that are wanted, by number and values.

        Returns:
            The numbers of the good batches, and a line for each reason why others are not used.
        """
        if not self.folder.is_dir():
            return [], []
        difference = self._difference()
        if difference is not None:
            shutil.rmtree(self.folder)
            return [], [f"{self.folder} holds another measurement ({difference}); starts anew"]
        good, damaged = [], []
        for k in range(num_batches):
            if not self._path(k).is_file():
                continue
            try:
                if fits(k, self.read(k)):
                    good.append(k)
                else:
                    self._path(k).unlink()
            except ValueError:
                damaged.append(self._path(k).name)
                self._path(k).unlink()
        listed = ", ".join(damaged[:3]) + (f" and {len(damaged) - 3} more" if len(damaged) > 3 else "")
        return good, [f"in {self.folder} {listed} cannot be used; {self._done} again"] if damaged else []

    def discard(self, k: int) -> None:
        """Delete a batch."""
        self._path(k).unlink(missing_ok=True)

    def count(self) -> int:
        """The number of batches that are kept."""
        return len(list(self.folder.glob("[0-9]*.batch")))

    def drop(self) -> None:
        """Delete all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def _difference(self) -> str | None:
        """The difference between the folder's fingerprint and ours, or None."""
        path = self.folder / _FINGERPRINT
        try:
            found = parse_json(path.read_bytes())
        except (OSError, ValueError):
            # it is there to name the difference; each batch answers for itself
            path.unlink(missing_ok=True)
            return None
        keys = [k for k in (self._fingerprint | found) if self._fingerprint.get(k) != found.get(k)]
        if not keys:
            return None
        shown = "; ".join(f"{k} was {_short(found.get(k))}, is {_short(self._fingerprint.get(k))}" for k in keys[:2])
        return shown + (f" and {len(keys) - 2} more" if len(keys) > 2 else "")


def _short(value: Any) -> str:
    """A digest by its first digits, anything else as it is."""
    return f"{value[:8]}..." if isinstance(value, str) and len(value) == 64 else repr(value)
