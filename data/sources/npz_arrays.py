"""Arrays of ``.npz`` files, read without running their code."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from ..errors import DataError


def read_labels(arrays: NpzFile, path: Path, *keys: str) -> np.ndarray | None:
    """Labels int64 [N] under the first of these names that is there, or None."""
    labels = read_array(arrays, *keys)
    if labels is None:
        return None
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        got = f"{labels.dtype} {list(labels.shape)}"
        raise DataError(f"{path}: labels must be integers [N], got {got}; save class numbers from 0 on")
    return labels.astype(np.int64)


def read_number(arrays: NpzFile, path: Path, key: str, *, default: int) -> int:
    """One integer, or the default where there is none."""
    number = read_array(arrays, key)
    if number is None:
        return default
    if number.size != 1 or number.dtype.kind not in "iu":
        got = f"{number.dtype} {list(number.shape)}"
        raise DataError(f"{path}: {key} must be one integer, got {got}; save it as a number")
    return int(number.reshape(()))


def read_names(arrays: NpzFile, path: Path) -> tuple[str, ...]:
    """The names of the classes; none where there are none."""
    names = read_array(arrays, "class_names")
    if names is None:
        return ()
    if names.ndim != 1 or names.dtype.kind != "U":
        got = f"{names.dtype} {list(names.shape)}"
        raise DataError(f"{path}: class_names must be text [num_classes], got {got}; save np.array of strings")
    return tuple(names.tolist())


def read_array(arrays: NpzFile, *keys: str) -> np.ndarray | None:
    """The array under the first of these names that is there, or None."""
    return next((np.asarray(arrays[key]) for key in keys if key in arrays), None)


def count_rows(arrays: NpzFile, *keys: str) -> int | None:
    """The length of the first array of these names, by its header; None where there is none."""
    key = next((key for key in keys if key in arrays), None)
    if key is None:
        return None
    assert arrays.zip is not None
    with arrays.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, _ = read(file)
    return shape[0] if shape else None


@contextmanager
def opened(path: Path) -> Iterator[NpzFile]:
    """Open an archive whose arrays are read one by one as they are asked for; any failure becomes one line."""
    if not path.is_file():
        raise DataError(
            f"{path} not found; put an .npz file with a uint8 array 'images' [N, H, W, C], or 'vectors' [N, D], there"
        )
    try:
        loaded = np.load(path, allow_pickle=False)
        if not isinstance(loaded, NpzFile):
            raise DataError(f"{path} is a single array, expected an .npz archive; save it with numpy.savez")
        with loaded as arrays:
            yield arrays
    except DataError:
        raise
    except Exception as error:  # zip, zlib, header and memory errors of broken archives
        reason = f"{type(error).__name__}: {error}"
        raise DataError(
            f"{path} is truncated, corrupt or pickled ({reason}); save it again with numpy.savez"
        ) from error
