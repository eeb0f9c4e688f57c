"""Images that a user gives as conditions: an npz file, an image file, or a folder of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .base import ImageKind
from .errors import DataError
from .sources.clips import read_clips
from .sources.decoding import SizesDifferError, decode_all
from .sources.grey import GreyRule
from .sources.npz import read_npz_images, read_npz_values

# of images that are black and white: a grey pixel's distance from both, and the largest share of such
_GREY, _MOST_GREY = 0.25, 0.05
_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


def read_given_images(path: Path, kind: ImageKind, *, what: str = "condition images") -> tuple[Tensor, Tensor | None]:
    """Read images of a kind.

    Args:
        path: An ``.npz`` file with ``images`` or ``arr_0``, uint8 [N, H, W, C], such as ``samples.npz``; an image file;
            or a folder of image files, taken in the order of their names. Of clips ``images`` is [N, F, H, W, C]; else
            it is a clip, or a folder of them, as the data set ``clips`` has them, of which the first F frames are
            taken. Pixels are from 0 to 255, or below ``num_levels`` of an npz file that says it; they are brought to
            the levels of the kind.
        kind: The shape and levels that the images must have.
        what: What messages call them.

    Returns:
        Grey levels, uint8 [N, C, H, W] or [N, C, F, H, W], and the labels of an npz file that has them, int64 [N].

    Raises:
        DataError: If there are no such images, or they are of another shape.
    """
    labels, levels = None, 256
    axes = "C x F x H x W" if kind.of_clips else "C x H x W"
    mode = "L" if kind.image_shape[0] == 1 else "RGB"
    if path.suffix == ".npz" and path.is_file():
        images, found, levels = read_npz_images(path)
        labels = None if found is None else torch.from_numpy(found)
    elif kind.of_clips:
        images = read_clips(path, mode, kind.image_shape[1])
    else:
        paths = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES) if path.is_dir() else [path]
        if not paths or not paths[0].is_file():
            raise DataError(f"{path} holds no images; pass an npz file, an image file or a folder of them")
        images = _decode_one_size(paths, mode, f"{path}: {what} must all be {_by(kind.image_shape)} (C x H x W)")
    if not len(images):
        raise DataError(f"{path} holds no images, got 0; pass one or more")
    if images.shape[1:] != kind.image_shape:
        fix = "convert them" if images.shape[1] != kind.image_shape[0] else "resize them"
        raise DataError(f"{path}: {what} must be {_by(kind.image_shape)} ({axes}), got {_by(images.shape[1:])}; {fix}")
    if levels == 256 and kind.num_levels == 2 and images.max() == 1:
        raise DataError(
            f"{path}: {what} must be black and white, 0 and 255, got 0 and 1, which is all black; multiply them by 255"
        )
    wide = torch.from_numpy(images).double() * (kind.num_levels - 1) / (levels - 1)
    found = wide.round()
    far = float(((wide - found).abs() > _GREY).double().mean())
    if kind.num_levels == 2 and far > _MOST_GREY:
        raise DataError(
            f"{path}: {what} must be black and white, got {far:.0%} of pixels between; draw them so, such as edges"
        )
    return found.to(torch.uint8), labels


def _decode_one_size(paths: Sequence[Path], mode: str, expected: str) -> np.ndarray:
    try:
        return decode_all(paths, mode=mode, grey=GreyRule(), size=None)[0]
    except SizesDifferError as error:
        raise DataError(f"{expected}, got {error.sizes}; resize them") from None


def _by(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def read_given_mask(path: Path, height: int, width: int) -> Tensor:
    """Read a mask, bool [H, W], True where the image file is white or nearer to white than to black.

    Raises:
        DataError: If there is no such file, or it is of another size.
    """
    images, _ = read_given_images(path, ImageKind((1, height, width), 256), what="masks")
    if len(images) > 1:
        raise DataError(f"{path} holds {len(images)} images; pass one, the mask of all that are restored")
    seen = images[0, 0] > 127
    if not bool(seen.any()):
        raise DataError(f"{path} is black throughout, and shows nothing; make white what is seen")
    return seen


def read_given_values(path: Path, size: int) -> tuple[Tensor, Tensor | None]:
    """Read the array ``values`` of an ``.npz`` file, float32 [N, size], and its labels if it has any, int64 [N].

    Samples of vectors are read too, from ``arr_0``.

    Raises:
        DataError: If it has none, or of another size.
    """
    values, labels = read_npz_values(path)
    if values.shape[1] != size:
        raise DataError(f"{path}: values must be [N, {size}], got {list(values.shape)}; give each sample {size}")
    return torch.from_numpy(values), None if labels is None else torch.from_numpy(labels)
