"""Files that are complete or absent, and the reading of files that may hold anything, or be anything."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
import tempfile
from collections.abc import Iterable
from io import FileIO
from pathlib import Path
from typing import Any

# What a file system answers that cannot sync a folder; it then orders its writes as it likes.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def one_line(text: object, most: int = 300) -> str:
    """A message on one line, printable and not longer than ``most`` characters, whatever a damaged file put into it."""
    line = "".join(c if c.isprintable() else " " for c in str(text))
    line = " ".join(line.split())
    return line if len(line) <= most else f"{line[:most]}..."


def sync_folder(path: Path) -> None:
    """Make the names in a folder, or a file's bytes, last through a power cut; nothing where a file system cannot."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except PermissionError:
        # one may write in a folder that one may not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make a file, or a folder with all that is in it, last through a power cut."""
    for inside in path.rglob("*"):
        sync_folder(inside)
    sync_folder(path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each of which lasts through a power cut."""
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    sync_folder(path.parent)


def write_synced(place: Path | int, chunks: Iterable[bytes | memoryview]) -> None:
    """Write a file, given by its path or its descriptor, and wait until the disk has it."""
    with open(place, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file that is complete or absent: temporary name, fsync, rename, fsync of the folder.

    Args:
        path: Where to; its folder is made if need be.
        data: The bytes.
    """
    make_folder(path.parent)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        write_synced(handle, [data])
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def append_whole(file: FileIO, data: bytes) -> None:
    """Append to a file, opened without a buffer, all of the data; or nothing, if that fails.

    Raises:
        OSError: If it fails.
    """
    end, rest = file.seek(0, os.SEEK_END), memoryview(data)
    try:
        while rest:
            rest = rest[file.write(rest) :]
    except OSError:
        with contextlib.suppress(OSError):
            file.truncate(end)
        raise


def read_regular(path: Path, *, size: int | None = None, most: int | None = None) -> bytes:
    """Read a file if it is one: a pipe in its place does not block, and a device is not read.

    Args:
        path: The file.
        size: Its length in bytes, if known; one of another length is not read.
        most: Its greatest length in bytes.

    Raises:
        ValueError: If it is something else, or of another length.
        OSError: If it cannot be opened or read.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"{path.name} is not a regular file")
        if size is not None and status.st_size != size:
            raise ValueError(f"{path.name} has {status.st_size} bytes, expected {size} (it is truncated or corrupt)")
        if most is not None and status.st_size > most:
            raise ValueError(f"{path.name} has {status.st_size} bytes, expected at most {most}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            # one more than there should be, in case it grows
            return file.read(status.st_size + 1)
    finally:
        os.close(descriptor)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands in it twice")
    return found


def parse_json(data: bytes) -> dict[str, Any]:
    """Read an object in UTF-8 JSON.

    Raises:
        ValueError: If it is no such thing: other types, repeated keys, nesting or numbers without end.
    """
    try:
        value = json.loads(data.decode(), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(value, dict):
        raise ValueError(f"it holds a {type(value).__name__}, not an object")
    return value
