"""A folder of images, decoded once into memory at one size."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from .base import ONE_IN_TEN, SPLITS, ImageDataset, check_split, fixed_split
from .errors import DataError
from .sizes import ImageSize, height_and_width

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff"})
FILES_PER_TASK = 32


def load_folder(
    *, root: Path, split: str, image_size: ImageSize | None = None, channels: int | None = None
) -> ImageDataset:
    """Load a tree of images: ``root/{train,test}/<class>/...``, or ``root/<class>/...``, or images right in ``root``.

    If ``root`` has a subfolder ``train`` or ``test``, the split is the subfolder of its name. Otherwise a fixed
    permutation (seed 0) holds one image in ten out for test, and at least one. Classes are the first-level
    subfolders that hold images, of both splits together, sorted. Images in no subfolder are class 0, before any
    subfolder's. Hidden files and folders and other extensions are ignored; links are followed, except back into a
    folder that contains them.

    Each image is turned upright by its EXIF orientation, converted (transparency is dropped, 16-bit grey is scaled
    to 8 bits, an animation gives its first frame), resized with a Lanczos filter so that it just covers
    ``image_size``, and cropped to its centre. An image of that size already keeps its pixels.

    The whole split is held in memory: N * channels * H * W bytes (70,000 images of 64x64x3 are 0.8 GiB).

    Args:
        root: Folder to look in.
        split: ``"train"`` or ``"test"``.
        image_size: Height and width of the result: one number for squares, or (H, W).
        channels: 3 for RGB (the default) or 1 for grey.

    Returns:
        uint8 images [N, channels, H, W] with 256 levels, in the sorted order of their paths
        relative to the folder of the split.

    Raises:
        DataError: If an argument is missing or wrong, there are no images, or an image cannot be decoded.
    """
    check_split(split)
    size, mode = _check_format(image_size, channels)
    root = Path(root)
    base, paths, classes, split_source, other_split_size = _list_split(root, split)
    class_numbers = {name: number for number, name in enumerate(classes)}
    labels = [class_numbers[_class_of(path)] for path in paths]
    images = _decode_all([base / path for path in paths], size, mode)
    return ImageDataset(
        images=torch.from_numpy(images),
        labels=torch.tensor(labels, dtype=torch.int64),
        num_levels=256,
        num_classes=len(classes),
        name="folder",
        split=split,
        class_names=tuple(name or "." for name in classes),
        split_source=split_source,
        other_split_size=other_split_size,
    )


def _check_format(image_size: ImageSize | None, channels: int | None) -> tuple[tuple[int, int], str]:
    if image_size is None:
        raise DataError("image_size is required for a folder of images, got None; set it to the height to train at")
    size = height_and_width(image_size)
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels}; choose one of them")
    return size, "L" if channels == 1 else "RGB"


def _list_split(root: Path, split: str) -> tuple[Path, list[str], list[str], str, int]:
    """The split's folder, its images as sorted relative paths, both splits' classes and origin, the other's size."""
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set the data root to a folder of images")
    present = [name for name in SPLITS if (root / name).is_dir()]
    if present and split not in present:
        raise DataError(f"{root} has a folder {present[0]!r} but none named {split!r}; add {root / split}")
    if present:
        base = root / split
        per_split = {name: _list_images(root / name) for name in present}
        paths, everything = per_split[split], [path for listed in per_split.values() for path in listed]
    else:
        base = root
        everything = _list_images(root)
        paths = [everything[i] for i in fixed_split(len(everything), split)] if everything else []
    if not paths:
        raise DataError(f"no images in {base}; put files there with one of: {' '.join(sorted(EXTENSIONS))}")
    classes = sorted({_class_of(path) for path in everything})
    source = f"folders {' and '.join(f'{name}/' for name in present)}" if present else ONE_IN_TEN
    return base, paths, classes, source, len(everything) - len(paths)


def _class_of(path: str) -> str:
    return path.split("/", 1)[0] if "/" in path else ""


def _list_images(folder: Path) -> list[str]:
    try:
        return sorted(path.relative_to(folder).as_posix() for path in _walk(folder, ancestors=()))
    except OSError as error:
        raise DataError(f"{folder} cannot be listed ({error}); check its permissions") from error


def _walk(folder: Path, *, ancestors: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    status = folder.stat()
    identity = (status.st_dev, status.st_ino)
    # A link back into a folder that contains it would never end. A second link to a folder elsewhere is no loop:
    # the user may well share images between classes.
    if identity in ancestors:
        return
    with os.scandir(folder) as entries:
        visible = [entry for entry in entries if not entry.name.startswith(".")]
    for entry in visible:
        if os.path.isdir(entry.path):  # unlike entry.is_dir, false for a link to itself
            yield from _walk(Path(entry.path), ancestors=(*ancestors, identity))
        elif Path(entry.name).suffix.lower() in EXTENSIONS:
            yield Path(entry.path)


def _decode_all(paths: list[Path], size: tuple[int, int], mode: str) -> np.ndarray:
    shape = (len(paths), 1 if mode == "L" else 3, *size)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        raise DataError(
            f"{len(paths)} images of shape {list(shape[1:])} do not fit in memory; lower image_size"
        ) from error

    def decode_range(begin: int) -> int:
        end = min(begin + FILES_PER_TASK, len(paths))
        for i in range(begin, end):
            images[i] = _decode(paths[i], size, mode)
        return end - begin

    # Threads suffice: Pillow releases the interpreter lock while it decodes and resizes.
    pool = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        with tqdm(total=len(paths), desc="decoding", unit="image", disable=None) as bar:
            for count in pool.map(decode_range, range(0, len(paths), FILES_PER_TASK)):
                bar.update(count)
    finally:
        pool.shutdown(cancel_futures=True)
    return images


def _decode(path: Path, size: tuple[int, int], mode: str) -> np.ndarray:
    try:
        with Image.open(path) as opened:
            opened.load()
            image = _convert(ImageOps.exif_transpose(opened), mode)
            pixels = np.asarray(_resize_and_crop(image, size))
    except Exception as error:  # the decoders of a dozen formats raise nearly anything on broken bytes
        reason = f"{type(error).__name__}: {error}"
        raise DataError(f"{path} cannot be decoded ({reason}); replace the file or remove it") from error
    return pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)


def _convert(image: Image.Image, mode: str) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips wide grey pixels instead of scaling them: a 16-bit image would come out white.
        wide = np.asarray(image)
        if wide.min() < 0 or wide.max() > 65535:
            raise ValueError("grey values beyond 16 bits")
        image = Image.fromarray((wide >> 8).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    return image.convert(mode)


def _resize_and_crop(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    width, height = image.size
    kept_height, kept_width = size
    scale = max(kept_width / width, kept_height / height)
    new_width, new_height = max(kept_width, round(width * scale)), max(kept_height, round(height * scale))
    left, top = (new_width - kept_width) // 2, (new_height - kept_height) // 2
    # The crop is asked for as the box it has in the source: the pixels are those of resizing all and then cropping,
    # without the memory for a strip that is a thousand times as long as it is wide.
    step_x, step_y = width / new_width, height / new_height
    box = (left * step_x, top * step_y, (left + kept_width) * step_x, (top + kept_height) * step_y)
    return image.resize((kept_width, kept_height), Image.Resampling.LANCZOS, box=box)
