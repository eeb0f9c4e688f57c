"""CIFAR-10 (Krizhevsky 2009) from its official binary archive, extracted or not."""

import gzip
import http.client
import socket
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from runtime.files import sync_folder

from ..base import ImageDataset, check_split
from ..errors import DataError

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
ARCHIVE, FOLDER = "cifar-10-binary.tar.gz", "cifar-10-batches-bin"
FILES = {"train": [f"data_batch_{i}.bin" for i in range(1, 6)], "test": ["test_batch.bin"]}
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_CLASSES = 10
CHUNK = 1 << 20
TIMEOUT_SECONDS = 30
_AGAIN = f"remove it and fetch {ARCHIVE} again"


def load_cifar10(
    *,
    root: Path,
    split: str,
    download: bool = True,
    url: str = URL,
    sha256: str = SHA256,
    records_per_file: int = 10000,
) -> ImageDataset:
    """Load one split from what lies in ``root`` or ``root/cifar10``, or download the binary archive (162 MiB).

    ``root`` may also be what is looked for itself.

    Looked for, in this order: the extracted folder ``cifar-10-batches-bin``, then the archive
    ``cifar-10-binary.tar.gz``, which is read without extracting it. Of a folder only the files of the split are read;
    the archive is read to its end, where its checksum stands. The archive of Python pickles is not read.

    Args:
        root: Folder to look in, and to download into.
        split: ``"train"`` or ``"test"``.
        download: Whether to fetch the archive if nothing is found.
        url: Where to fetch the archive from.
        sha256: Its checksum, in hex.
        records_per_file: Images in each of the six files; every file must have exactly as many.

    Returns:
        uint8 images [N, 3, 32, 32] with 256 levels and labels 0 .. 9, in the official order.

    Raises:
        DataError: If files are missing, truncated, corrupt or of the wrong size, or the download fails.
    """
    check_split(split)
    root = Path(root)
    source = _find(root) or _fetch(root, allowed=download, url=url, sha256=sha256)
    names = FILES[split]
    images = np.empty((len(names), records_per_file, PIXELS), np.uint8)
    labels = np.empty((len(names), records_per_file), np.int64)
    missing = set(names)
    for name, content in _read_files(source, names, records_per_file * RECORD):
        table = np.frombuffer(content, np.uint8).reshape(records_per_file, RECORD)
        if table[:, 0].max() >= NUM_CLASSES:
            wrong = table[:, 0].max()
            raise DataError(f"{source / name} has a label {wrong}, expected 0 .. {NUM_CLASSES - 1}; {_AGAIN}")
        images[names.index(name)], labels[names.index(name)] = table[:, 1:], table[:, 0]
        missing.discard(name)
    if missing:
        raise DataError(f"{source} lacks {', '.join(sorted(missing))}; {_AGAIN}")
    return ImageDataset(
        images=torch.from_numpy(images.reshape(-1, 3, 32, 32)),
        labels=torch.from_numpy(labels.reshape(-1)),
        num_levels=256,
        num_classes=NUM_CLASSES,
        name="cifar10",
        split=split,
        class_names=CLASS_NAMES,
        split_source="official split",
        other_split_size=(6 - len(names)) * records_per_file,
    )


def _find(root: Path) -> Path | None:
    if root.name in (FOLDER, ARCHIVE) or any((root / name).is_file() for names in FILES.values() for name in names):
        return root
    folders = (root, root / "cifar10")
    found = [folder / FOLDER for folder in folders if (folder / FOLDER).is_dir()]
    found += [folder / ARCHIVE for folder in folders if (folder / ARCHIVE).is_file()]
    return found[0] if found else None


def _fetch(root: Path, *, allowed: bool, url: str, sha256: str) -> Path:
    """Fetch the archive into a folder of its own and check it, so that there is none or the right one."""
    fix = f"put {ARCHIVE} (the binary version; that of pickles is not read) in {root}"
    if not allowed:
        raise DataError(f"cifar10 not found in {root} and downloading is off; {fix}")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT_SECONDS)  # PyTorch's own download would wait for a dead server for ever
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".cifar10.") as folder:
            archive = Path(folder) / ARCHIVE
            torch.hub.download_url_to_file(url, str(archive), hash_prefix=sha256, progress=sys.stderr.isatty())
            sync_folder(archive)
            archive.replace(root / ARCHIVE)
            sync_folder(root)
    except (OSError, http.client.HTTPException, ValueError, RuntimeError) as error:
        raise DataError(f"cifar10 not found in {root}, and {url} could not be fetched ({error}); {fix}") from error
    finally:
        socket.setdefaulttimeout(before)
    return root / ARCHIVE


def _read_files(source: Path, names: list[str], size: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files one at a time, in the order they are stored, so that only one is held beside the images."""
    try:
        if source.is_dir():
            for path in (source / name for name in names):
                if path.is_file():
                    _check_size(path, path.stat().st_size, size)
                    yield path.name, path.read_bytes()
            return
        with gzip.open(source, "rb") as stream:
            # Stream mode never seeks back, so the archive is decompressed once.
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if path.name not in names or path.parent.name != FOLDER:
                        continue
                    file = archive.extractfile(member) if member.isreg() else None
                    if file is None:
                        raise DataError(f"{source / path.name} is not a regular file in the archive; {_AGAIN}")
                    _check_size(source / path.name, member.size, size)
                    yield path.name, file.read()
            # gzip compares its checksum only at the very end; without it a flipped bit would train as a pixel.
            while stream.read(CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source} is truncated or corrupt ({error}); {_AGAIN}") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error}); check its permissions, or {_AGAIN}") from error


def _check_size(path: Path, size: int, expected: int) -> None:
    if size != expected:
        problem = "is truncated" if size < expected else "is too long"
        raise DataError(f"{path} {problem}: expected {expected} bytes, got {size}; fetch {ARCHIVE} again")
