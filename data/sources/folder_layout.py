"""Images, splits and classes of a folder, by the names of its files."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..base import ONE_IN_TEN, fixed_split
from ..errors import DataError
from .folder_captions import CaptionFiles, find_caption_files

EXTENSIONS = frozenset(
    {".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".webp", ".gif", ".tif", ".tiff", ".avif"}
    | {".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".tga", ".qoi", ".pcx"}
)
LOOSE = "."  # the class of images in no subfolder

# Names of folders of splits, in any case; val stands in for test where there is none.
_SPLIT_OF = {
    "train": "train",
    "training": "train",
    "test": "test",
    "testing": "test",
    "val": "val",
    "valid": "val",
    "validation": "val",
}

# What may be one all the same, as train_set or val2017.
_LIKE_A_SPLIT = re.compile(
    r"(train|training|test|testing|val|valid|validation|dev)([ _.-]?(set|split|data|\d+))?", re.I
)


@dataclass(frozen=True)
class Layout:
    """The images of one split of a folder.

    Attributes:
        paths: Images of the split, in the sorted order of their paths relative to the folder of the split.
        labels: The class of each.
        class_names: Classes of both splits, numbers in names by their value; empty without subfolders.
        all_paths: Images of both splits.
        split_source: Where the splits are from.
        notes: Lines on what was left out.
        captions: Files of captions, by name.
        train_files: Digest of the names of the train split, where the number of images decides which they are.
    """

    paths: list[Path]
    labels: list[int]
    class_names: tuple[str, ...]
    all_paths: list[Path]
    split_source: str
    notes: tuple[str, ...]
    captions: CaptionFiles
    train_files: str = ""


def read_layout(root: Path, split: str) -> Layout:
    """Find the images, classes and splits of a folder, without opening a file.

    Args:
        root: The folder.
        split: ``"train"`` or ``"test"``.

    Raises:
        DataError: If there are no images, or if it cannot be told which folder is a split.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder; set data.root to a folder of images")
    files = _list_files(root)
    images = [name for name in files if _is_image(name)]
    captions = find_caption_files(files, images)
    files = [name for name in files if name not in captions.names]
    folders = _folders_of_splits(root, images)
    if folders and split not in folders:
        there = " and ".join(repr(name) for name in folders.values())
        raise DataError(f"{root} has a folder {there} but none named {split!r}; add {root / split}")
    if folders:
        base = root / folders[split]
        per_split = {name: _below(images, name) for name in folders.values()}
        names = own = per_split[folders[split]]
        everything = sorted({name for found in per_split.values() for name in found})
        all_paths = [root / folder / name for folder, found in per_split.items() for name in found]
        source = " and ".join(f"{name}/" for name in folders.values())
        source = f"folders {source}" if len(folders) > 1 else f"folder {source}"
        if _SPLIT_OF[folders.get("test", "test").casefold()] == "val":
            source += f", {folders['test']}/ as the test split"
    else:
        base, own, everything = root, images, images
        names = [images[i] for i in fixed_split(len(images), split)] if images else []
        all_paths = [root / name for name in images]
        source = ONE_IN_TEN
    if not names:
        found = f"; {left_out}" if (left_out := _count_left_out(base, files, root)) else ""
        raise DataError(f"no images in {base}{found}; put files there with one of: {' '.join(sorted(EXTENSIONS))}")
    classes = sorted({_class_of(name) for name in everything}, key=natural_order)
    numbers = {name: number for number, name in enumerate(classes)}
    return Layout(
        paths=[base / name for name in names],
        labels=[numbers[_class_of(name)] for name in names],
        class_names=() if classes == [LOOSE] else tuple(classes),
        all_paths=all_paths,
        split_source=source,
        notes=tuple(_notes(root, base, files, images, own, everything, classes, folders)),
        captions=captions,
        train_files="" if folders else _digest_of_train(images),
    )


def natural_order(name: str) -> tuple[bool, list[str | int], str]:
    """A key that sorts numbers in names by their value: 2 before 10, and images in no subfolder first."""
    parts: list[str | int] = [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
    return name != LOOSE, parts, name


def _folders_of_splits(root: Path, images: Sequence[str]) -> dict[str, str]:
    """The folder of each split that has one; empty where first-level folders are classes."""
    folders = [path.name for path in _subfolders(root)]
    named = {name: _SPLIT_OF[name.casefold()] for name in folders if name.casefold() in _SPLIT_OF}
    roles = set(named.values())
    both, certain = "train" in roles and len(roles) > 1, any(map(_is_certain, named))
    if not both and not certain:
        return {}
    beside = [name for name in folders if name not in named and _below(images, name)]
    if beside and not (both and certain):
        split = min(named, key=lambda name: (not _is_certain(name), name))
        raise DataError(
            f"{root} has a folder {split!r} beside {_some(beside)}: it may be a split or a class; "
            f"if all are classes, rename {split!r}, and if it is a split, move the others out of {root}"
        )
    found: dict[str, str] = {}
    for name, role in sorted(named.items(), key=lambda item: (item[1] == "val", item[0])):
        if role == "val" and "test" in roles:
            continue
        role = "test" if role == "val" else role
        if role in found:
            raise DataError(f"{root / found[role]} and {root / name} could both be the {role} split; rename one")
        found[role] = name
    return {role: found[role] for role in ("train", "test") if role in found}


def _splits_below(images: Sequence[str]) -> Iterator[str]:
    """Folders of images, relative to the split's, that have splits of their own, all of whose images are taken."""
    splits: dict[str, set[str]] = {}
    for image in images:
        folders = image.split("/")[:-1]
        for depth, name in enumerate(folders):
            if role := _SPLIT_OF.get(name.casefold()):
                splits.setdefault("/".join(folders[:depth]), set()).add(role)
    yield from (folder for folder, roles in sorted(splits.items()) if len(roles) > 1)


def _digest_of_train(images: Sequence[str]) -> str:
    names = "\0".join(images[int(i)] for i in fixed_split(len(images), "train"))
    return hashlib.sha256(os.fsencode(names)).hexdigest()


def _is_certain(name: str) -> bool:
    """Tell a name that is a split's even where it stands alone."""
    return name.casefold() in ("train", "test")


def _notes(
    root: Path,
    base: Path,
    files: Sequence[str],
    images: Sequence[str],
    own: Sequence[str],
    everything: Sequence[str],
    classes: Sequence[str],
    folders: dict[str, str],
) -> Iterator[str]:
    if folders:
        beside = Counter(_class_of(name) for name in images)
        unused = {name: count for name, count in beside.items() if name not in folders.values()}
        if unused:
            shown = _some([f"{count:,} in {root / name}" for name, count in unused.items()])
            yield f"left out, since they are beside the splits {_some(list(folders.values()))}: images, {shown}"
    if left_out := _count_left_out(base, files, root):
        yield left_out
    empty = sorted((path.name for path in _subfolders(base) if path.name not in classes), key=natural_order)
    if empty:
        yield f"no classes, since they hold no image that can be read: {_some(empty)} in {base}"
    if like_splits := [name for name in classes if _LIKE_A_SPLIT.fullmatch(name)]:
        yield (
            f"read as classes, though splits are named so too: {_some(like_splits)}; if one is a split, put the "
            "classes into folders train and test"
        )
    if within := [str(base / folder) for folder in _splits_below(own) if folder]:
        yield (
            f"read whole, test images too, though they have folders such as train and test: {_some(within)}; if "
            f"these are splits, put the classes into folders train and test of {root}"
        )
    if LOOSE in classes and len(classes) > 1:
        count = sum(_class_of(name) == LOOSE for name in everything)
        yield f"images in no class folder are a class of their own, {LOOSE!r}: {count:,}"


def _count_left_out(base: Path, files: Sequence[str], root: Path) -> str:
    """A line that counts the files that have no name of an image, or nothing."""
    there = files if base == root else _below(files, base.name)
    suffixes = Counter(Path(name).suffix.lower() or "without extension" for name in there if not _is_image(name))
    if not suffixes:
        return ""
    counts = ", ".join(f"{count:,} {suffix}" for suffix, count in suffixes.most_common())
    return f"left out of {base}, since these kinds of file are not read: {counts}"


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _is_image(name: str) -> bool:
    return Path(name).suffix.lower() in EXTENSIONS


def _class_of(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else LOOSE


def _below(names: Sequence[str], folder: str) -> list[str]:
    return [name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")]


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if os.path.isdir(path) and not path.name.startswith("."))


def _list_files(folder: Path) -> list[str]:
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
        elif os.path.isfile(entry.path) or not os.path.exists(entry.path):  # a dangling link is for decoding to name
            yield Path(entry.path)
