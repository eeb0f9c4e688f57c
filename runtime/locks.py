"""One writer a folder: a lock that the kernel holds, so that it goes with the process, however that ends."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from .files import make_folder, one_line
from .messages import say

_CANNOT_LOCK = {errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class LockedError(RuntimeError):
    """Another process writes in the folder."""


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
    held: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    try:
        make_folder(folder)
        # a lock that is a file would outlive a killed process
        held = FileLock(folder / f".{what}.lock", fallback_to_soft=False).acquire(blocking=False)
    except Timeout:
        raise LockedError(
            f"another process is at --mode {what} in {folder}; wait for it to end or stop it, or choose another {flag}"
        ) from None
    except OSError as error:
        reason = one_line(error.strerror or error)
        if error.errno not in _CANNOT_LOCK:
            raise OSError(
                f"{folder} cannot be written in ({reason}); make it writable, or choose another {flag}"
            ) from error
        say(f"{folder} cannot be locked ({reason}): see to it that no other process does --mode {what} there")
    with held:
        yield
