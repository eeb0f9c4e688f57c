"""Image files as uint8 pixels, all files of a folder by one rule."""

import contextlib
import os
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError
from tqdm import tqdm

from ..errors import DataError
from .grey import GreyRule

FILES_PER_TASK = 32
_ODDITIES = {
    "transparent": "images that are transparent in places, shown on white",
    "frames": "files of several frames, of which the first is taken",
    "deep": "colour images of 16 bits a channel, of which the upper 8 are taken",
}

# Pillow allows 64 MiB of text in a PNG, and of a compressed text no more than 1 MiB, which some programs exceed.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**31 - 1

T = TypeVar("T")
Result = TypeVar("Result")


class SizesDifferError(DataError):
    """Images that must be of one size are of several.

    Args:
        sizes: The sizes, with the number of images of each.
    """

    def __init__(self, sizes: str) -> None:
        super().__init__(
            f"images as they are must all be of one size, got {sizes}; "
            "set image_size, to which they are resized and cropped"
        )
        self.sizes = sizes


def decode_all(
    paths: Sequence[Path],
    *,
    mode: str,
    grey: GreyRule,
    size: tuple[int, int] | None,
    checked: Sequence[Path] = (),
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Decode image files into one array.

    Args:
        paths: At least one file.
        mode: ``"L"`` for grey or ``"RGB"``.
        grey: How grey values of more than 8 bits become 8.
        size: Height and width to resize and crop to, or None for the one size that all of them have.
        checked: Further files, which are refused as the others are, but not kept.

    Returns:
        uint8 [N, C, H, W], and lines on what was done to some of the images.

    Raises:
        DataError: Naming all files that cannot be read, or the sizes found where there are several.
    """
    height, width = size or _first_size(paths)
    shape = (len(paths), 1 if mode == "L" else 3, height, width)
    try:
        images = np.empty(shape, np.uint8)
    except (MemoryError, ValueError) as error:
        raise DataError(
            f"{len(paths)} images of shape {list(shape[1:])} do not fit in memory; lower image_size"
        ) from error

    every = [*paths, *checked]

    def decode_into_place(index: int) -> tuple[str, tuple[int, int], list[str]]:
        try:
            pixels, oddities = _decode(every[index], mode, grey, size)
        except UnidentifiedImageError:  # its message would repeat the path
            return "not an image", (height, width), []
        except DataError as error:
            return str(error), (height, width), []
        except Exception as error:  # the decoders of a dozen formats raise nearly anything on broken bytes
            return f"{type(error).__name__}: {error}", (height, width), []
        if index < len(paths) and pixels.shape == shape[1:]:
            images[index] = pixels
        return "", pixels.shape[1:], oddities

    done = in_threads(decode_into_place, range(len(every)), "decoding")
    _check_decoded(every, done)
    counts = Counter(oddity for _, _, oddities in done[: len(paths)] for oddity in oddities)
    return images, tuple(f"{text}: {counts[name]:,}" for name, text in _ODDITIES.items() if counts[name])


def _check_decoded(paths: Sequence[Path], done: Sequence[tuple[str, tuple[int, int], list[str]]]) -> None:
    broken = [f"{path} ({reason})" for path, (reason, _, _) in zip(paths, done, strict=True) if reason]
    if broken:
        count = f"{len(broken):,} of {len(paths):,} images cannot be read"
        raise DataError(f"{count}: {', '.join(broken)}; replace or remove what is named")
    sizes = Counter(found for _, found, _ in done)
    if len(sizes) > 1:
        shown = ", ".join(f"{h}x{w} ({count:,} images)" for (h, w), count in sizes.most_common(10))
        raise SizesDifferError(f"{len(sizes)} sizes: {shown}")


def in_threads(work: Callable[[T], Result], items: Sequence[T], description: str) -> list[Result]:
    """The results of ``work`` on each item, in their order, with a progress bar on a terminal."""
    # Threads suffice: Pillow releases the interpreter lock while it decodes and resizes.
    with ThreadPool(min(8, os.cpu_count() or 1)) as pool:
        results = pool.imap(work, items, chunksize=FILES_PER_TASK)
        return list(tqdm(results, total=len(items), desc=description, unit="image", disable=None))


def _first_size(paths: Sequence[Path]) -> tuple[int, int]:
    for path in paths:
        with contextlib.suppress(Exception), Image.open(path) as opened:  # named with the other broken ones
            opened.load()
            width, height = ImageOps.exif_transpose(opened).size
            return height, width
    return 1, 1


def _decode(path: Path, mode: str, grey: GreyRule, size: tuple[int, int] | None) -> tuple[np.ndarray, list[str]]:
    with Image.open(path) as opened:
        oddities = []
        # of phones' photographs (MPO) the further frames are no pictures but depth and the like
        if getattr(opened, "is_animated", False) and opened.format != "MPO":
            oddities.append("frames")
        if opened.mode in ("RGB", "RGBA", "LA") and any(";16" in str(tile[3]) for tile in opened.tile):
            oddities.append("deep")
        opened.load()
        pixels, transparent = pixels_of(ImageOps.exif_transpose(opened), mode, grey, size)
        if transparent:
            oddities.append("transparent")
    return pixels, oddities


def pixels_of(image: Image.Image, mode: str, grey: GreyRule, size: tuple[int, int] | None) -> tuple[np.ndarray, bool]:
    """The pixels of an image on white, uint8 [C, H, W], and whether it is transparent in places; see ``decode_all``."""
    image = grey.to_8_bits(image)
    on_white = _on_white(image)
    shown = (on_white or image).convert(mode)
    pixels = np.asarray(shown if size is None else _resize_and_crop(shown, size))
    return (pixels[None] if mode == "L" else pixels.transpose(2, 0, 1)), on_white is not None


def _on_white(image: Image.Image) -> Image.Image | None:
    """An image that is transparent in places, before white; None of one that is opaque."""
    if image.mode not in ("RGBA", "RGBa", "LA", "PA") and "transparency" not in image.info:
        return None
    image = image.convert("RGBA")
    if image.getchannel("A").getextrema() == (255, 255):
        return None
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    return white.convert("RGB")


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
