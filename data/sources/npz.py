"""Arrays saved with ``numpy.savez``: images as FID evaluators have them, uint8 [N, H, W, C], or vectors [N, D]."""

from pathlib import Path

import numpy as np
import torch
from numpy.lib.npyio import NpzFile

from ..base import (
    ONE_IN_TEN,
    SPLITS,
    ImageDataset,
    check_split,
    fixed_split,
)
from ..errors import DataError
from ..vectors import VectorDataset
from .npz_arrays import count_rows, opened, read_array, read_labels, read_names, read_number
from .npz_vectors import holds_vectors, load_vectors

CHANNEL_COUNTS = (1, 2, 3, 4)


def load_npz(*, root: Path, split: str) -> ImageDataset | VectorDataset:
    """Load images or vectors from one ``.npz`` file, or from a folder that holds ``train.npz`` and ``test.npz``.

    Arrays: ``images`` (or ``arr_0``), uint8 [N, H, W, C] or [N, H, W], or [N, C, H, W] where the last axis cannot be
    channels (C is 1 .. 4); optional ``labels`` (or ``arr_1``), integers [N]; optional numbers ``num_levels`` (256 by
    default) and ``num_classes`` (by default the highest label of both splits plus one, or 1 without labels, or the
    number of names), and optional ``class_names``, text [num_classes] in the order of the labels. A single
    file may hold both splits as ``train_images``, ``test_images``, ``train_labels`` and ``test_labels``; otherwise a
    fixed permutation (seed 0) holds one image in ten out for test, and at least one. Pickled arrays are refused.

    In place of ``images``, ``vectors`` (or ``data``), floating point [N, D], makes a data set of vectors.

    Args:
        root: The file or the folder.
        split: ``"train"`` or ``"test"``.

    Returns:
        uint8 images [N, C, H, W], or vectors, in the order of the file.

    Raises:
        DataError: If files or arrays are missing, corrupt, or of another dtype or shape.
    """
    check_split(split)
    root = Path(root)
    with opened(root / f"{split}.npz" if root.is_dir() else root) as arrays:
        of_vectors = holds_vectors(arrays)
        images = [name for name in ("images", "train_images", "test_images", "arr_0") if name in arrays]
        vectors = [name for name in ("vectors", "train_vectors", "test_vectors") if name in arrays]
        if images and vectors:
            raise DataError(
                f"{root} holds both images ({images[0]}) and vectors ({vectors[0]}); save one of them alone"
            )
    if of_vectors:
        return load_vectors(root, split)
    return _load_folder(root, split) if root.is_dir() else _load_file(root, split)


def _load_folder(root: Path, split: str) -> ImageDataset:
    path, other = root / f"{split}.npz", root / f"{_other(split)}.npz"
    other_labels = other_split_size = None
    if other.is_file():
        with opened(other) as arrays:  # its images are not read
            other_labels = read_labels(arrays, other, "labels", "arr_1")
            other_split_size = count_rows(arrays, "images", "arr_0")
    with opened(path) as arrays:
        images = _read_images(arrays, path, "images", "arr_0")
        labels = read_labels(arrays, path, "labels", "arr_1")
        source = "files train.npz and test.npz" if other.is_file() else f"file {split}.npz"
        return _build(arrays, path, images, labels, split, source, other_split_size, other_labels=other_labels)


def _load_file(path: Path, split: str) -> ImageDataset:
    with opened(path) as arrays:
        if any(f"{name}_images" in arrays for name in SPLITS):
            images = _read_images(arrays, path, f"{split}_images")
            labels = read_labels(arrays, path, f"{split}_labels")
            other_labels = read_labels(arrays, path, f"{_other(split)}_labels")
            source = "arrays train_images and test_images"
            other_split_size = count_rows(arrays, f"{_other(split)}_images")
            return _build(arrays, path, images, labels, split, source, other_split_size, other_labels=other_labels)
        images = _read_images(arrays, path, "images", "arr_0")
        labels = read_labels(arrays, path, "labels", "arr_1")
        chosen = fixed_split(len(images), split)
        return _build(arrays, path, images, labels, split, ONE_IN_TEN, len(images) - len(chosen), chosen=chosen)


def _build(
    arrays: NpzFile,
    path: Path,
    images: np.ndarray,
    labels: np.ndarray | None,
    split: str,
    split_source: str,
    other_split_size: int | None,
    *,
    other_labels: np.ndarray | None = None,
    chosen: np.ndarray | None = None,
) -> ImageDataset:
    if labels is not None and len(labels) != len(images):
        raise DataError(f"{path} has {len(labels)} labels, expected {len(images)}; save one label an image")
    # Both splits count, so that a conditional model trained on one fits the other.
    highest = max((int(known.max()) for known in (labels, other_labels) if known is not None and known.size), default=0)
    class_names = read_names(arrays, path)
    num_classes = read_number(arrays, path, "num_classes", default=len(class_names) or highest + 1)
    num_levels = read_number(arrays, path, "num_levels", default=256)
    if labels is None:
        labels = np.zeros(len(images), np.int64)
    if chosen is not None:
        images, labels = images[chosen], labels[chosen]
    try:
        return ImageDataset(
            images=torch.from_numpy(np.ascontiguousarray(images)),
            labels=torch.from_numpy(labels),
            num_levels=num_levels,
            num_classes=num_classes,
            name="npz",
            split=split,
            class_names=class_names,
            split_source=split_source,
            other_split_size=other_split_size,
        )
    except DataError as error:
        raise DataError(f"{path}: {error}") from error


def _read_images(arrays: NpzFile, path: Path, *keys: str) -> np.ndarray:
    images = read_array(arrays, *keys)
    if images is None:
        found = ", ".join(arrays.files) or "nothing"
        raise DataError(f"{path} has no array {' or '.join(keys)}, got {found}; save the images as {keys[0]}")
    expected = "uint8 [N, H, W, C] with C of 1 .. 4, [N, H, W] or [N, C, H, W]"
    if images.dtype == np.uint8 and images.ndim == 3:
        return images[:, None]
    if images.dtype == np.uint8 and images.ndim == 4:
        # The convention decides where both axes could be channels.
        if images.shape[3] in CHANNEL_COUNTS:
            return images.transpose(0, 3, 1, 2)
        if images.shape[1] in CHANNEL_COUNTS:
            return images
    fix = "save vectors under the name 'vectors'" if images.ndim == 2 else "save them as that"
    raise DataError(f"{path}: images must be {expected}, got {images.dtype} {list(images.shape)}; {fix}")


def _other(split: str) -> str:
    return "test" if split == "train" else "train"
