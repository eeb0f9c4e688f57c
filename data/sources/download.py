"""Fetching one file over the network, whole and verified, or not at all."""

import contextlib
import hashlib
import http.client
import os
import secrets
import urllib.request
from pathlib import Path

from tqdm import tqdm

CHUNK = 1 << 20
TIMEOUT_SECONDS = 30


class DownloadError(Exception):
    """A download that failed; the message is the reason, for the caller to put into a ``DataError``."""


def download(url: str, target: Path, *, md5: str) -> None:
    """Fetch ``url`` into ``target`` under a temporary name, verify it, and rename it into place.

    A reader therefore finds either no file or the right one, and processes that download at once do not disturb each
    other. The progress bar is shown only on a terminal.

    Args:
        url: Address to fetch.
        target: File to create; its folder is created too.
        md5: Expected MD5 checksum, in hex.

    Raises:
        DownloadError: If the file cannot be fetched or written, or has another checksum; nothing is left behind.
    """
    partial = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        found, size = _fetch(url, partial)
        if found != md5:
            raise DownloadError(f"checksum mismatch: expected MD5 {md5}, got {found} in {size} bytes")
        partial.replace(target)
        _sync_folder(target.parent)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(str(error) or type(error).__name__) from error
    finally:
        # Also on KeyboardInterrupt: a user who gives up must not find half an archive.
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _fetch(url: str, partial: Path) -> tuple[str, int]:
    digest, size = hashlib.md5(usedforsecurity=False), 0
    with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS) as response, partial.open("xb") as file:
        total = int(response.headers.get("Content-Length") or 0) or None
        with tqdm(total=total, unit="B", unit_scale=True, desc=url.rsplit("/", 1)[-1], disable=None) as bar:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
                bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest(), size


def _sync_folder(folder: Path) -> None:
    # Makes the rename itself survive a power cut; not every platform lets a folder be opened.
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
