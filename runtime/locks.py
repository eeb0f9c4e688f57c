"""One writer a folder: a lock that the kernel holds, so that it goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from .files import make_folder, one_line
from .messages import say

_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LockedError(RuntimeError):
    """Another process writes in the folder."""


def _acquire(path: Path) -> BaseFileLock:
    # a lock that is a file would outlive a killed process; filelock before version 4 knows no such choice
    known = inspect.signature(FileLock.__init__).parameters
    options: dict[str, Any] = {"fallback_to_soft": False} if "fallback_to_soft" in known else {}
    lock = FileLock(path, **options)
    lock.acquire(blocking=False)
    if isinstance(lock, SoftFileLock):
        lock.release(force=True)
        raise NotImplementedError("it has no flock")
    return lock


def _ask_kernel(path: Path) -> None:
    """Raise what it answers: filelock before version 4 takes any refusal for another process's lock."""
    with contextlib.suppress(ImportError), path.open("rb") as file:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)


@contextlib.contextmanager
def locked(folder: Path, what: str, *, flag: str = "--workdir") -> Iterator[None]:
    """Be the only process that does one thing in a folder, while the ``with`` block runs.

    The lock is on the file ``.<what>.lock`` in it, which stays there when the lock is released: whoever deletes it lets
    two processes in. Where the file system cannot lock, that is said, and the block runs without.

    Args:
        folder: The folder; it is made if need be.
        what: What the process does there, as in "train"; something else may be done there at the same time.
        flag: The flag by which another folder is chosen.

    Raises:
        LockedError: If another process does it already.
        OSError: If nothing can be written there.
    """
    lock = None
    try:
        make_folder(folder)
        try:
            lock = _acquire(folder / f".{what}.lock")
        except Timeout:
            with contextlib.suppress(BlockingIOError, PermissionError):
                _ask_kernel(folder / f".{what}.lock")
            raise LockedError(
                f"another process is at --mode {what} in {folder}; wait for it to end or stop it, "
                f"or choose another {flag}"
            ) from None
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _CANNOT_LOCK:
            reason = one_line(error.strerror or error)
            raise OSError(
                f"{folder} cannot be written in ({reason}); make it writable, or choose another {flag}"
            ) from error
        say(f"{folder} cannot be locked ({one_line(error)}): see to it that no other process does --mode {what} there")
    try:
        yield
    finally:
        if lock is not None:
            lock.release()
