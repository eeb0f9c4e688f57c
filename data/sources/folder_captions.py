"""Captions of the images of a folder: lines of JSON, or a text file beside each image."""

import json
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import DataError
from .decoding import in_threads

LISTS = ("captions.jsonl", "metadata.jsonl")  # in the order in which they are looked for
FILE_KEYS, CAPTION_KEYS = ("file", "file_name"), ("caption", "text")


@dataclass(frozen=True)
class CaptionFiles:
    """Files of captions, by name.

    Attributes:
        lists: Files of JSON lines; if there is one, nothing else is read.
        beside: The text file of each image that has one. All names are relative to the root.
        images: All images of the folder, also those of no split.
    """

    lists: tuple[str, ...] = ()
    beside: tuple[tuple[str, str], ...] = ()
    images: frozenset[str] = frozenset()

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        return frozenset(self.lists) | {text for _, text in self.beside}


def find_caption_files(files: Sequence[str], images: Sequence[str]) -> CaptionFiles:
    """Find the captions of a folder by the names of its files, without looking at the disk.

    Args:
        files: All files, relative to the root, with "/".
        images: Those that are images.

    Returns:
        All ``captions.jsonl`` in any of its folders; without one all ``metadata.jsonl``; without one ``a/b.txt`` of
        each image ``a/b.png``.
    """
    others = set(files) - set(images)
    for name in LISTS:
        if lists := sorted(one for one in others if posixpath.basename(one) == name):
            return CaptionFiles(lists=tuple(lists), images=frozenset(images))
    texts = {name.removesuffix(".txt"): name for name in others if name.endswith(".txt")}
    stems = ((image, posixpath.splitext(image)[0]) for image in images) if texts else ()
    return CaptionFiles(beside=tuple((image, texts[stem]) for image, stem in stems if stem in texts))


def read_captions(root: Path, found: CaptionFiles) -> tuple[dict[str, str], tuple[str, ...]]:
    """Read captions: one line each, with single spaces; an empty one is none.

    A line of JSON is an object with ``file`` (or ``file_name``), relative to the folder of the list, and ``caption``
    (or ``text``), as Hugging Face's ``imagefolder`` has them; other keys are ignored.

    Args:
        root: The folder.
        found: Its files of captions.

    Returns:
        The caption of each image that has one, by name; and lines for the user on captions of files that are not there.

    Raises:
        DataError: Naming the file, and the number of the line, that cannot be read, or an image with two captions.
    """
    if not found.lists:
        texts = in_threads(lambda name: _one_line(_decoded(root / name, _bytes_of(root / name))),
                           [text for _, text in found.beside], "reading captions")  # fmt: skip
        return {image: text for (image, _), text in zip(found.beside, texts, strict=True) if text}, ()
    captions: dict[str, str] = {}
    gone: list[str] = []
    for name in found.lists:
        for where, image, caption in read_caption_lines(root / name):
            image = posixpath.normpath(posixpath.join(posixpath.dirname(name), image))
            if image in captions:
                raise DataError(f"{where}: {image} has a caption already; keep one line for each image")
            if image not in found.images:
                gone.append(image)
            else:
                captions[image] = caption
    captions = {image: caption for image, caption in captions.items() if caption}
    if not gone:
        return captions, ()
    return captions, (f"captions of images that are not there, left out: {len(gone):,}, such as {gone[0]}",)


def read_caption_lines(path: Path) -> Iterator[tuple[str, str, str]]:
    """Read lines of JSON, each with an image and its caption; see ``read_captions``.

    Returns:
        The place of each line in the file, in words; the image as it is named there; and its caption.

    Raises:
        DataError: Naming the file, and the number of the line, that cannot be read.
    """
    for number, line in enumerate(_bytes_of(path).split(b"\n"), start=1):
        where = f"{path} line {number}"
        if text := _decoded(where, line).strip():
            yield where, *_read_line(where, text)


def _read_line(where: str, text: str) -> tuple[str, str]:
    """The name and the caption of a line of JSON; the caption is empty where it has none."""
    try:
        entry = json.loads(text)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}); {_FIX}") from None
    if not isinstance(entry, dict):
        raise DataError(f"{where} is not an object of JSON, got {type(entry).__name__}; {_FIX}")
    image, caption = (_first(entry, keys) for keys in (FILE_KEYS, CAPTION_KEYS))
    if not isinstance(image, str) or not image:
        raise DataError(f"{where} names no image, expected {' or '.join(FILE_KEYS)}; {_FIX}")
    if not isinstance(caption, str):
        raise DataError(f"{where}: the caption must be a text, got {type(caption).__name__}; {_FIX}")
    return image, _one_line(caption)


_FIX = 'write {"file": "a/b.png", "caption": "..."}'


def _first(entry: dict[str, Any], keys: Sequence[str]) -> Any:
    return next((entry[key] for key in keys if entry.get(key) is not None), "")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _bytes_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); check the file and its permissions") from error


def _decoded(where: str | Path, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{where} is not UTF-8 ({error.reason}); save it as UTF-8") from None
