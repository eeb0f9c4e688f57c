"""CIFAR-10 (Krizhevsky 2009) from its official archives, binary or Python, extracted or not."""

import gzip
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import torch

from ..base import ImageDataset, check_split
from ..errors import DataError
from .download import DownloadError, download
from .restricted_pickle import load_restricted

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
MD5 = "c32a1d4ab5d03f1284b67883e8d87530"
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
NUM_CLASSES = 10
CHUNK = 1 << 20
# A Python batch also lists file names: about 30 bytes a record beside the pixels. Anything near twice the size is
# not a batch, and is refused before it is read into memory.
MAX_PICKLE_RECORD = 2 * RECORD


@dataclass(frozen=True)
class _Layout:
    archive: str
    folder: str
    suffix: str

    def file_names(self, split: str) -> list[str]:
        stems = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
        return [stem + self.suffix for stem in stems]


# Binary first: where both are there, the one that needs no unpickling is read.
_BINARY = _Layout("cifar-10-binary.tar.gz", "cifar-10-batches-bin", ".bin")
_PYTHON = _Layout("cifar-10-python.tar.gz", "cifar-10-batches-py", "")


def load_cifar10(
    *,
    root: Path,
    split: str,
    download: bool = True,
    url: str = URL,
    md5: str = MD5,
    records_per_file: int = 10000,
) -> ImageDataset:
    """Load one split from what lies in ``root`` or ``root/cifar10``, or download the binary archive (162 MiB).

    ``root`` may also be what is looked for itself.

    Looked for, in this order: the extracted folders ``cifar-10-batches-bin`` and ``cifar-10-batches-py``, then the
    archives ``cifar-10-binary.tar.gz`` and ``cifar-10-python.tar.gz``, which are read without extracting them. Of a
    folder only the files of the split are read; an archive is read to its end, where its checksum stands. Python
    batches are unpickled with nothing but NumPy arrays and plain containers allowed.

    Args:
        root: Folder to look in, and to download into.
        split: ``"train"`` or ``"test"``.
        download: Whether to fetch the archive if nothing is found.
        url: Where to fetch the binary archive from.
        md5: Its checksum.
        records_per_file: Images in each of the six files; every file must have exactly as many.

    Returns:
        uint8 images [N, 3, 32, 32] with 256 levels and labels 0 .. 9, in the official order.

    Raises:
        DataError: If files are missing, truncated, corrupt, of the wrong size or unsafe, or the download fails.
    """
    check_split(split)
    root = Path(root)
    source, layout = _find(root) or _fetch(root, allowed=download, url=url, md5=md5)
    names = layout.file_names(split)
    images = np.empty((len(names), records_per_file, PIXELS), np.uint8)
    labels = np.empty((len(names), records_per_file), np.int64)
    missing = set(names)
    for name, content in _read_files(source, layout, names, records_per_file):
        decode = _decode_pickle if layout is _PYTHON else _decode_binary
        place = names.index(name)
        images[place], labels[place] = decode(content, f"{source / name}", records_per_file)
        missing.discard(name)
    if missing:
        raise DataError(f"{source} lacks {', '.join(sorted(missing))}; remove it and fetch {layout.archive} again")
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


def _find(root: Path) -> tuple[Path, _Layout] | None:
    for layout in (_BINARY, _PYTHON):
        batches = [*layout.file_names("train"), *layout.file_names("test")]
        if root.name in (layout.folder, layout.archive) or any((root / name).is_file() for name in batches):
            return root, layout
    folders = (root, root / "cifar10")
    extracted = [(folder / layout.folder, layout) for folder in folders for layout in (_BINARY, _PYTHON)]
    archives = [(folder / layout.archive, layout) for folder in folders for layout in (_BINARY, _PYTHON)]
    found = [(path, layout) for path, layout in extracted if path.is_dir()]
    found += [(path, layout) for path, layout in archives if path.is_file()]
    return found[0] if found else None


def _fetch(root: Path, *, allowed: bool, url: str, md5: str) -> tuple[Path, _Layout]:
    fix = f"put {_BINARY.archive} or {_PYTHON.archive} in {root}"
    if not allowed:
        raise DataError(f"cifar10 not found in {root} and downloading is off; {fix}")
    target = root / _BINARY.archive
    try:
        download(url, target, md5=md5)
    except DownloadError as error:
        raise DataError(f"cifar10 not found in {root}, and {url} could not be fetched ({error}); {fix}") from error
    return target, _BINARY


def _read_files(source: Path, layout: _Layout, names: list[str], records: int) -> Iterator[tuple[str, bytes]]:
    """Yield the files one at a time, in the order they are stored, so that only one is held beside the images."""
    again = f"remove it and fetch {layout.archive} again"
    try:
        if source.is_dir():
            for path in (source / name for name in names):
                if path.is_file():
                    _check_size(path, layout, path.stat().st_size, records)
                    yield path.name, path.read_bytes()
            return
        with gzip.open(source, "rb") as stream:
            # Stream mode never seeks back, so the archive is decompressed once.
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for member in archive:
                    path = PurePosixPath(member.name)
                    if path.name not in names or path.parent.name != layout.folder:
                        continue
                    _check_size(source / path.name, layout, member.size, records)
                    file = archive.extractfile(member) if member.isreg() else None
                    if file is None:
                        raise DataError(f"{source / path.name} is not a regular file in the archive; {again}")
                    yield path.name, file.read()
            # gzip compares its checksum only at the very end; without it a flipped bit would train as a pixel.
            while stream.read(CHUNK):
                pass
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{source} is truncated or corrupt ({error}); {again}") from error
    except OSError as error:
        raise DataError(f"{source} cannot be read ({error}); check its permissions, or {again}") from error


def _check_size(path: Path, layout: _Layout, size: int, records: int) -> None:
    if layout is _BINARY and size != records * RECORD:
        problem = "is truncated" if size < records * RECORD else "is too long"
        raise DataError(
            f"{path} {problem}: expected {records * RECORD} bytes, got {size}; fetch {layout.archive} again"
        )
    if layout is _PYTHON and size > (limit := records * MAX_PICKLE_RECORD):
        raise DataError(
            f"{path} is too long: expected less than {limit} bytes, got {size}; fetch {layout.archive} again"
        )


def _decode_binary(content: bytes, source: str, records: int) -> tuple[np.ndarray, np.ndarray]:
    if len(content) != records * RECORD:
        raise DataError(
            f"{source} is truncated: expected {records * RECORD} bytes, got {len(content)}; "
            f"fetch {_BINARY.archive} again"
        )
    table = np.frombuffer(content, np.uint8).reshape(records, RECORD)
    return table[:, 1:], _checked_labels(table[:, 0].tolist(), source)


def _decode_pickle(content: bytes, source: str, records: int) -> tuple[np.ndarray, np.ndarray]:
    batch = load_restricted(content, source=source)
    again = f"fetch {_PYTHON.archive} again"
    if not isinstance(batch, dict) or not {b"data", b"labels"} <= batch.keys():
        raise DataError(f"{source} is not a CIFAR-10 batch: expected a dict with b'data' and b'labels'; {again}")
    pixels, labels = batch[b"data"], batch[b"labels"]
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != (records, PIXELS):
        got = f"{pixels.dtype} {list(pixels.shape)}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
        raise DataError(f"{source} has the wrong size: expected uint8 [{records}, {PIXELS}], got {got}; {again}")
    if not isinstance(labels, list) or len(labels) != records or any(type(label) is not int for label in labels):
        raise DataError(f"{source} has the wrong labels: expected a list of {records} integers; {again}")
    return pixels, _checked_labels(labels, source)


def _checked_labels(labels: list[int], source: str) -> np.ndarray:
    wrong = next((label for label in labels if not 0 <= label < NUM_CLASSES), None)
    if wrong is not None:
        raise DataError(f"{source} has a label {wrong}, expected 0 .. {NUM_CLASSES - 1}; fetch the archive again")
    return np.array(labels, np.int64)
