"""Real vectors saved with ``numpy.savez``: floating point [N, D]."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from ..base import ONE_IN_TEN, SPLITS, fixed_split
from ..errors import DataError
from ..space import RealSpace
from ..vectors import VectorDataset
from .npz_arrays import opened, read_array, read_labels, read_names, read_number

_NAMES = ("vectors", "data")


@dataclass
class _Part:
    vectors: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    num_classes: int

    def rows(self, chosen: np.ndarray) -> "_Part":
        return _Part(self.vectors[chosen], self.labels[chosen], self.class_names, self.num_classes)


def holds_vectors(arrays: NpzFile) -> bool:
    """Tell an archive of vectors by the names of its arrays."""
    return any(_has(arrays, prefix) for prefix in ("", *(f"{split}_" for split in SPLITS)))


def _has(arrays: NpzFile, prefix: str) -> bool:
    return any(f"{prefix}{name}" in arrays for name in _NAMES)


def load_vectors(root: Path, split: str) -> VectorDataset:
    """Load vectors from one ``.npz`` file, or from a folder that holds ``train.npz`` and ``test.npz``.

    The arrays are ``vectors`` (or ``data``), floating point [N, D], and all others as of images; see ``load_npz``.
    Networks see them standardized, by mean and standard deviation of the train split in each dimension.

    Args:
        root: The file or the folder.
        split: ``"train"`` or ``"test"``.

    Returns:
        The vectors in the order of the file, in float64.

    Raises:
        DataError: If arrays are missing, or of another dtype or shape, or not finite, or constant in a dimension.
    """
    path = root / f"{split}.npz" if root.is_dir() else root
    parts, source = _read_folder(root) if root.is_dir() else _read_file(root)
    if split not in parts:
        raise DataError(f"{path} has no array {split}_vectors; save it, or one array 'vectors' for both splits")
    part = parts[split]
    try:
        return VectorDataset(
            vectors=torch.from_numpy(part.vectors),
            labels=torch.from_numpy(part.labels),
            space=RealSpace.of(torch.from_numpy(parts.get("train", part).vectors)),
            # both splits count, so that a conditional model trained on one fits the other
            num_classes=max(one.num_classes for one in parts.values()),
            name="npz",
            split=split,
            class_names=part.class_names,
            split_source=source,
            other_split_size=next((len(one.vectors) for name, one in parts.items() if name != split), None),
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_folder(root: Path) -> tuple[dict[str, _Part], str]:
    there = [split for split in SPLITS if (root / f"{split}.npz").is_file()]
    parts = {}
    for split in there:
        with opened(root / f"{split}.npz") as arrays:
            parts[split] = _read_part(arrays, root / f"{split}.npz", "")
    return parts, " and ".join(f"{split}.npz" for split in there)


def _read_file(path: Path) -> tuple[dict[str, _Part], str]:
    with opened(path) as arrays:
        if _has(arrays, ""):
            whole = _read_part(arrays, path, "")
            return {split: whole.rows(fixed_split(len(whole.vectors), split)) for split in SPLITS}, ONE_IN_TEN
        there = [split for split in SPLITS if _has(arrays, f"{split}_")]
        parts = {split: _read_part(arrays, path, f"{split}_") for split in there}
        return parts, "arrays " + " and ".join(f"{split}_vectors" for split in there)


def _read_part(arrays: NpzFile, path: Path, prefix: str) -> _Part:
    vectors = read_array(arrays, *(f"{prefix}{name}" for name in _NAMES))
    if vectors is None or vectors.dtype.kind != "f" or vectors.ndim != 2:
        got = "none" if vectors is None else f"{vectors.dtype} {list(vectors.shape)}"
        raise DataError(
            f"{path}: vectors must be floating point [N, D], got {got}; save them as that, or grey levels as 'images'"
        )
    labels = read_labels(arrays, path, f"{prefix}labels")
    if labels is not None and len(labels) != len(vectors):
        raise DataError(f"{path} has {len(labels)} labels, expected {len(vectors)}; save one label a vector")
    names = read_names(arrays, path)
    highest = int(labels.max()) if labels is not None and labels.size else 0
    num_classes = read_number(arrays, path, "num_classes", default=len(names) or highest + 1)
    labels = np.zeros(len(vectors), np.int64) if labels is None else labels
    return _Part(vectors.astype(np.float64), labels, names, num_classes)
