"""MNIST from its official IDX files (LeCun, Cortes and Burges 1998), compressed or not."""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from ..base import DIGITS, ImageDataset, check_split
from ..errors import DataError

FOLDERS = ("", "mnist", "MNIST", "MNIST/raw", "raw")
PREFIXES = {"train": "train", "test": "t10k"}
IMAGES_MAGIC, LABELS_MAGIC = 2051, 2049


def load_mnist(*, root: Path, split: str) -> ImageDataset:
    """Load one split; of the other split's files no more is read than a header.

    The files are looked for in ``root``, ``root/mnist``, ``root/MNIST`` and ``root/MNIST/raw`` (torchvision's layout;
    ``root`` may be any of its folders), as ``train-images-idx3-ubyte`` or ``train-images.idx3-ubyte``, with or without
    ``.gz``. They are never downloaded.

    Args:
        root: Folder to look in.
        split: ``"train"`` or ``"test"`` (the ``t10k`` files).

    Returns:
        uint8 images [N, 1, 28, 28] with 256 levels and labels 0 .. 9, in the official order.

    Raises:
        DataError: If a file is missing, truncated, corrupt or of another kind, or if the two files disagree.
    """
    check_split(split)
    images_path, labels_path = _find(Path(root), split)
    images = _read_idx(images_path, magic=IMAGES_MAGIC, num_axes=3)
    labels = _read_idx(labels_path, magic=LABELS_MAGIC, num_axes=1)
    if len(images) != len(labels):
        raise DataError(
            f"{labels_path} has {len(labels)} labels, expected {len(images)} for {images_path}; "
            "fetch both files from the same source"
        )
    if labels.max() > 9:
        raise DataError(f"{labels_path} has a label {labels.max()}, expected 0 .. 9; fetch the file again")
    return ImageDataset(
        images=torch.from_numpy(images[:, None]),
        labels=torch.from_numpy(labels.astype(np.int64)),
        num_levels=256,
        num_classes=10,
        name="mnist",
        split=split,
        class_names=DIGITS,
        split_source="official split",
        other_split_size=_count(Path(root), "train" if split == "test" else "test"),
    )


def _find(root: Path, split: str) -> tuple[Path, Path]:
    prefix = PREFIXES[split]
    stems = (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
    for folder in FOLDERS:
        # Both files must come from one folder: mixing two copies could pair images with another copy's labels.
        images, labels = (_first_file(root / folder, stem) for stem in stems)
        if images and labels:
            return images, labels
    wanted = f"{stems[0]}.gz and {stems[1]}.gz"
    raise DataError(f"mnist {split} files not found together in {root}; put {wanted} in {root / 'mnist'}")


def _count(root: Path, split: str) -> int | None:
    """The number of images by the header of their file; None where there is no such file."""
    try:
        with _opened(_find(root, split)[0]) as file:
            return struct.unpack(">2I", file.read(8))[1]
    except (DataError, EOFError, OSError, struct.error, zlib.error):
        return None


def _opened(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path, "rb")) if path.suffix == ".gz" else path.open("rb")


def _first_file(folder: Path, stem: str) -> Path | None:
    names = (stem, stem.replace("-idx", ".idx"))
    candidates = (folder / f"{name}{suffix}" for suffix in ("", ".gz") for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _read_idx(path: Path, *, magic: int, num_axes: int) -> np.ndarray:
    header_size = 4 * (1 + num_axes)
    try:
        with _opened(path) as file:
            content = file.read()
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path} is truncated or corrupt ({error}); fetch the file again") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the file and its permissions") from error
    if len(content) < header_size:
        got = f"expected a header of {header_size} bytes, got {len(content)}"
        raise DataError(f"{path} is truncated: {got}; fetch the file again")
    found, *shape = struct.unpack_from(f">{1 + num_axes}I", content)
    if found != magic:
        raise DataError(f"{path} is not this IDX file: expected magic {magic}, got {found}; fetch it again")
    if 0 in shape:
        raise DataError(f"{path} holds no data: its header says shape {shape}; fetch the file again")
    expected = header_size + math.prod(shape)
    if len(content) != expected:
        problem = "truncated" if len(content) < expected else "too long"
        raise DataError(f"{path} is {problem}: expected {expected} bytes, got {len(content)}; fetch the file again")
    # of writable memory, which tensors want
    return np.frombuffer(bytearray(content), np.uint8, offset=header_size).reshape(shape)
