"""Arrays saved with ``numpy.savez``: images as FID evaluators have them, uint8 [N, H, W, C], clips, or vectors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from ..base import ONE_IN_TEN, SPLITS, ImageDataset, check_split, fixed_split
from ..errors import DataError
from ..space import RealSpace
from ..vectors import VectorDataset
from ..video import VideoDataset

CHANNEL_COUNTS = (1, 2, 3, 4)
_CLIPS = "NCFHW"
_IMAGES, _VECTORS = ("images", "arr_0"), ("vectors", "data")
_HOLDS = "a uint8 array 'images' [N, H, W, C], or 'vectors' [N, D]"


@dataclass(frozen=True)
class _Split:
    """The arrays of a split; ``samples`` is None where their number alone was read."""

    of_vectors: bool
    size: int
    samples: np.ndarray | None
    labels: np.ndarray
    values: np.ndarray | None
    paired: np.ndarray | None
    paired_levels: int
    class_names: tuple[str, ...]
    num_levels: int
    num_classes: int

    def select(self, chosen: np.ndarray) -> "_Split":
        samples = None if self.samples is None else self.samples[chosen]
        values, paired = (None if one is None else one[chosen] for one in (self.values, self.paired))
        return replace(
            self, size=len(chosen), samples=samples, labels=self.labels[chosen], values=values, paired=paired
        )


def load_npz(*, root: Path, split: str) -> ImageDataset | VectorDataset:
    """Load images or vectors from one ``.npz`` file, or from a folder that holds ``train.npz`` and ``test.npz``.

    Arrays: ``images`` (or ``arr_0``), uint8 [N, H, W, C] or [N, H, W], or [N, C, H, W] where the last axis cannot be
    channels (C is 1 .. 4), or clips, uint8 [N, F, H, W, C]; optional ``labels`` (or ``arr_1``), integers [N]; optional
    numbers ``num_levels`` (256 by default) and ``num_classes`` (by default the highest label of both splits plus one,
    or 1 without labels, or the number of names), optional ``class_names``, text [num_classes] in the order of the
    labels, and optional ``values``, finite floats [N, K] or [N], see ``Dataset.values``. Beside ``images`` there may be
    ``paired``, images of their number, height and width, of ``paired_levels`` levels (256 by default), see
    ``Dataset.paired``. A single file may hold both splits as ``train_images``, ``test_images``, ``train_labels``,
    ``test_labels`` and so on; otherwise a fixed permutation (seed 0) holds one image in ten out for test, and at least
    one. Pickled arrays are refused.

    In place of ``images``, ``vectors`` (or ``data``), floating point [N, D], makes a data set of vectors. Networks see
    them standardized, by mean and standard deviation of the train split in each dimension.

    Args:
        root: The file or the folder.
        split: ``"train"`` or ``"test"``.

    Returns:
        uint8 images [N, C, H, W], clips [N, C, F, H, W], or vectors in float64, in the order of the file.

    Raises:
        DataError: If files or arrays are missing, corrupt, or of another dtype or shape, or vectors are not finite, or
            constant in a dimension.
    """
    check_split(split)
    other = "test" if split == "train" else "train"
    if not root.is_dir() and not _arrays_of_splits(root):
        whole = _read(root, "")
        chosen = {one: fixed_split(whole.size, one) for one in SPLITS}
        # of images the other split's labels are enough
        rest = (whole if whole.of_vectors else replace(whole, samples=None)).select(chosen[other])
        return _build(root, split, whole.select(chosen[split]), rest, ONE_IN_TEN)
    if root.is_dir():
        places = {one: (root / f"{one}.npz", "") for one in SPLITS}
        titles = {one: f"{one}.npz" for one in SPLITS if places[one][0].is_file()}
    else:
        places, titles = {one: (root, f"{one}_") for one in SPLITS}, _arrays_of_splits(root)
    own = _read(*places[split])
    rest = _read(*places[other], counted=not own.of_vectors) if other in titles else None
    kind = "file" if root.is_dir() else "array"
    source = f"{kind if rest is None else kind + 's'} {' and '.join(titles.values())}"
    return _build(places[split][0], split, own, rest, source)


def read_npz_images(path: Path) -> tuple[np.ndarray, np.ndarray | None, int]:
    """Read the images of a file whole: uint8 [N, C, H, W], labels int64 [N] or None, and their number of levels.

    Raises:
        DataError: If it holds none.
    """
    split = _read(path, "")
    if split.of_vectors or split.samples is None:
        raise DataError(f"{path} holds vectors, expected images; save them as 'images'")
    with _opened(path) as arrays:
        labelled = "labels" in arrays or "arr_1" in arrays
    return split.samples, split.labels if labelled else None, split.num_levels


def read_npz_values(path: Path) -> tuple[np.ndarray, np.ndarray | None]:
    """Read the array ``values`` of a file, float32 [N, K], and its labels, int64 [N] or None.

    Without it, ``arr_0`` is read: the vectors of ``samples.npz``, such as a prior's, are values of another model.

    Raises:
        DataError: If it has no values, or one that is not finite, or another number of labels.
    """
    with _opened(path, holds="an array 'values', floats [N, K]") as arrays:
        values = _values(arrays, path, "values" if "values" in arrays else "arr_0")
        if values is None:
            raise DataError(f"{path} has no array values; save floats [N, K] under that name")
        return values, _labels(arrays, path, ["labels"], len(values))


def _build(path: Path, split: str, own: _Split, rest: _Split | None, source: str) -> ImageDataset | VectorDataset:
    if rest is not None and rest.of_vectors != own.of_vectors:
        raise DataError(f"{path}: one split holds images, the other vectors; save both of one kind")
    sizes = [0 if one is None or one.values is None else one.values.shape[1] for one in (own, rest or own)]
    if sizes[0] != sizes[1]:
        raise DataError(
            f"{path}: {split} has {sizes[0]} values a sample, the other split {sizes[1]}; save as many in both"
        )
    # both splits count, so that a conditional model trained on one fits the other
    highest = max(int(one.labels.max(initial=0)) for one in (own, rest) if one is not None)
    shared: dict[str, Any] = {
        "num_classes": own.num_classes or len(own.class_names) or highest + 1,
        "name": "npz",
        "split": split,
        "class_names": own.class_names,
        "split_source": source,
        "other_split_size": None if rest is None else rest.size,
        "values": None if own.values is None else torch.from_numpy(own.values),
    }
    if own.paired is not None:
        shared |= {
            "paired": torch.from_numpy(np.ascontiguousarray(own.paired)),
            "paired_levels": own.paired_levels,
        }
    samples, labels = torch.from_numpy(np.ascontiguousarray(own.samples)), torch.from_numpy(own.labels)
    try:
        if own.of_vectors:
            train = own.samples if split == "train" or rest is None else rest.samples
            return VectorDataset(samples, labels, RealSpace.of(torch.from_numpy(train)), **shared)
        of = VideoDataset if samples.ndim == len(_CLIPS) else ImageDataset
        return of(samples, labels, own.num_levels, **shared)
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _arrays_of_splits(path: Path) -> dict[str, str]:
    """The names of the arrays that hold one split alone, by split."""
    with _opened(path) as arrays:
        names = [(one, f"{one}_{name}") for one in SPLITS for name in (*_IMAGES, *_VECTORS)]
        return {one: name for one, name in names if name in arrays}


def _read(path: Path, prefix: str, *, counted: bool = False) -> _Split:
    """Read a split, or of its samples no more than their number."""
    with _opened(path) as arrays:
        images, vectors = (
            [f"{one}{name}" for name in names for one in ("", "train_", "test_") if f"{one}{name}" in arrays]
            for names in (_IMAGES, _VECTORS)
        )
        if images and vectors:
            raise DataError(
                f"{path} holds both images ({images[0]}) and vectors ({vectors[0]}); save one of them alone"
            )
        keys = [f"{prefix}{name}" for name in (_VECTORS if vectors else _IMAGES)]
        key = next((key for key in keys if key in arrays), None)
        if key is None:
            found = ", ".join(arrays.files) or "nothing"
            raise DataError(f"{path} has no array {' or '.join(keys)}, got {found}; save the samples as {keys[0]}")
        samples = None if counted else _vectors(arrays[key], path) if vectors else _images(arrays[key], path)
        size = _count(arrays, key) if samples is None else len(samples)
        # as ``numpy.savez`` names what is given no name
        label_keys = [f"{prefix}labels"] if prefix else ["labels", "arr_1"]
        labels = _labels(arrays, path, label_keys, size)
        values = _values(arrays, path, f"{prefix}values")
        paired = None
        if f"{prefix}paired" in arrays and not counted:
            if vectors:
                raise DataError(f"{path} holds paired images beside vectors; save them beside 'images'")
            paired = _images(arrays[f"{prefix}paired"], path, "paired")
        for name, rows in (("values", values), ("paired", paired)):
            if rows is not None and len(rows) != size:
                raise DataError(f"{path} has {len(rows)} rows of {name}, expected {size}; save one row a sample")
        names = _read_checked(arrays, path, ["class_names"], "U", "text [num_classes]; save np.array of strings")
        return _Split(
            bool(vectors),
            size,
            samples,
            np.zeros(size, np.int64) if labels is None else labels,
            values,
            paired,
            _read_number(arrays, path, "paired_levels", default=256),
            () if names is None else tuple(names.tolist()),
            _read_number(arrays, path, "num_levels", default=256),
            _read_number(arrays, path, "num_classes", default=0),
        )


def _read_checked(arrays: NpzFile, path: Path, keys: list[str], kinds: str, expected: str) -> np.ndarray | None:
    """The array [N] under the first of these names that is there, or None."""
    array = next((arrays[key] for key in keys if key in arrays), None)
    if array is not None and (array.ndim != 1 or array.dtype.kind not in kinds):
        wanted, fix = expected.split("; ")
        raise DataError(f"{path}: {keys[0]} must be {wanted}, got {array.dtype} {list(array.shape)}; {fix}")
    return array


def _read_number(arrays: NpzFile, path: Path, key: str, *, default: int) -> int:
    """One integer, or the default where there is none."""
    number = arrays[key] if key in arrays else np.array(default)
    if number.size != 1 or number.dtype.kind not in "iu":
        got = f"{number.dtype} {list(number.shape)}"
        raise DataError(f"{path}: {key} must be one integer, got {got}; save it as a number")
    return int(number.item())


def _values(arrays: NpzFile, path: Path, key: str) -> np.ndarray | None:
    """Values of each sample under a name, float32 [N, K]; None where there are none."""
    if key not in arrays:
        return None
    values = arrays[key]
    if values.ndim not in (1, 2) or values.dtype.kind != "f" or not values[:1].size:
        got = f"{values.dtype} {list(values.shape)}"
        raise DataError(f"{path}: {key} must be finite floats [N, K] or [N], got {got}; save them as that")
    with np.errstate(over="ignore"):  # what overflows is refused below
        rows = values.astype(np.float32).reshape(len(values), -1)
    bad = int((~np.isfinite(rows)).any(1).sum())
    if bad:
        raise DataError(
            f"{path}: {key} must be finite floats [N, K] or [N], got {bad} of {len(rows)} rows that are not finite; "
            "leave these samples out"
        )
    return rows


def _vectors(vectors: np.ndarray, path: Path) -> np.ndarray:
    """Vectors [N, D] in float64."""
    if vectors.dtype.kind != "f" or vectors.ndim != 2:
        raise DataError(
            f"{path}: vectors must be floating point [N, D], got {vectors.dtype} {list(vectors.shape)}; save them as "
            "that, or grey levels as 'images'"
        )
    return vectors.astype(np.float64)


def _images(images: np.ndarray, path: Path, name: str = "images") -> np.ndarray:
    """Images with their channels before their pixels, [N, C, H, W]."""
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4:
        # The convention decides where both axes could be channels.
        if images.shape[3] in CHANNEL_COUNTS:
            return images.transpose(0, 3, 1, 2)
        if images.shape[1] in CHANNEL_COUNTS:
            return images
    if images.dtype == np.uint8 and images.ndim == len(_CLIPS) and images.shape[4] in CHANNEL_COUNTS:
        return images.transpose(0, 4, 1, 2, 3)
    expected = "uint8 [N, H, W, C] with C of 1 .. 4, [N, H, W], [N, C, H, W] or clips [N, F, H, W, C]"
    fix = "save vectors under the name 'vectors'" if images.ndim == 2 and name == "images" else "save them as that"
    raise DataError(f"{path}: {name} must be {expected}, got {images.dtype} {list(images.shape)}; {fix}")


def _labels(arrays: NpzFile, path: Path, keys: list[str], size: int) -> np.ndarray | None:
    """The labels of as many samples, int64 [N]; None without."""
    labels = _read_checked(arrays, path, keys, "iu", "integers [N]; save class numbers from 0 on")
    if labels is not None and len(labels) != size:
        raise DataError(f"{path} has {len(labels)} labels, expected {size}; save one label a sample")
    return None if labels is None else labels.astype(np.int64)


def _count(arrays: NpzFile, key: str) -> int:
    """The length of an array, by its header."""
    assert arrays.zip is not None
    with arrays.zip.open(f"{key}.npy") as file:
        version = np.lib.format.read_magic(file)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        return read(file)[0][0]


@contextmanager
def _opened(path: Path, *, holds: str = _HOLDS) -> Iterator[NpzFile]:
    """Open an archive whose arrays are read one by one as they are asked for; any failure becomes one line."""
    if not path.is_file():
        raise DataError(f"{path} not found; put an .npz file with {holds}, there")
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
            f"{path} is no .npz archive, or truncated, corrupt or pickled ({reason}); save {holds}, with numpy.savez"
        ) from error
