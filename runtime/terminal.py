"""Standard output and standard error that never end a command, and progress bars that suit a log file."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator
from typing import Any, TextIO

from tqdm import tqdm

_SECONDS_A_LINE = 60.0


class _ForgivingStream:
    """A text stream that drops what cannot be written, as after ``| head`` or on a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write text, or drop it."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Pass on what is buffered, or keep it for the next time."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _open_standard_descriptors() -> None:
    """Open descriptors 0, 1 and 2 where the shell closed them, or a checkpoint that is opened next is given one."""
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            # the lowest free number, which is this one
            os.open(os.devnull, os.O_RDWR)


def _drop_unwritten(stream: TextIO) -> None:
    """Let go of what can still not be written, or Python would exit with 120 when it flushes at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def forgiving_streams() -> Iterator[None]:
    """Let ``sys.stdout`` and ``sys.stderr`` drop what cannot be written, while the ``with`` block runs.

    A reader that is gone, a full disk, a closed descriptor and an encoding without the character end no command.
    """
    _open_standard_descriptors()
    before = sys.stdout, sys.stderr
    with open(os.devnull, "w") as nowhere:
        # Python has None for a descriptor that was closed
        streams = [nowhere if stream is None or stream.closed else stream for stream in before]
        for stream in streams:
            if isinstance(stream, io.TextIOWrapper):
                with contextlib.suppress(OSError):
                    stream.reconfigure(errors="backslashreplace")
        sys.stdout, sys.stderr = map(_ForgivingStream, streams)  # type: ignore[assignment]
        try:
            yield
        finally:
            for stream in streams:
                _drop_unwritten(stream)
            sys.stdout, sys.stderr = before


class ProgressBar(tqdm):
    """A progress bar on a terminal; elsewhere, as in a log file, one line a minute and one at the end.

    Args:
        options: tqdm's own.
    """

    def __init__(self, **options: Any) -> None:
        self._on_terminal = sys.stderr.isatty()
        self._next_line = time.monotonic() + _SECONDS_A_LINE
        super().__init__(dynamic_ncols=self._on_terminal, **options)

    def refresh(self, *args: Any, **options: Any) -> Any:
        """Draw the bar, elsewhere than on a terminal once a minute."""
        if not self._on_terminal:
            if time.monotonic() < self._next_line:
                return None
            self._next_line = time.monotonic() + _SECONDS_A_LINE
        return super().refresh(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> Any:
        """Draw the bar now."""
        if self._on_terminal:
            return super().display(msg, pos)
        # tqdm ends the last line itself
        self.fp.write(str(self) if self.disable else f"{self}\n")
        return True

    def clear(self, *args: Any, **options: Any) -> None:
        """Make room for a line; one that stands in a file stays."""
        if self._on_terminal:
            super().clear(*args, **options)
