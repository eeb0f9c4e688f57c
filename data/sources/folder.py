"""A folder of images, decoded once into memory at one size."""

from dataclasses import replace
from pathlib import Path

import torch

from ..base import ImageDataset, check_split
from ..errors import DataError
from ..recaptioning import REWRITTEN_SHARE, recaptioned_from
from ..sizes import ImageSize, height_and_width
from .decoding import decode_all, in_threads
from .folder_captions import read_captions
from .folder_layout import Layout, read_layout
from .grey import choose_grey_rule, look_for_grey


def load_folder(
    *,
    root: Path,
    split: str,
    image_size: ImageSize | None = None,
    channels: int | None = None,
    recaptioned: str = "",
    recaptioned_share: float = REWRITTEN_SHARE,
) -> ImageDataset:
    """Load a tree of images: ``root/{train,test}/<class>/...``, or ``root/<class>/...``, or images right in ``root``.

    If ``root`` has subfolders ``train`` and ``test`` (in any case; or ``training``, ``testing``), they are the splits;
    without ``test``, ``val`` (or ``valid``, ``validation``) takes its place. Otherwise a fixed permutation (seed 0)
    holds one image in ten out for test, and at least one. Classes are the first-level subfolders that hold images, of
    both splits together, sorted with numbers in names by their value. Images in no subfolder are class 0, named
    ``.``. Hidden files and folders are ignored, and other extensions counted in ``notes``; links are followed, except
    back into a folder that contains them.

    If there is a ``captions.jsonl`` or ``metadata.jsonl``, or ``a/b.txt`` beside ``a/b.png``, images have captions, see
    ``read_captions``; with ``recaptioned``, also those that were rewritten, in which images are named from ``root``.
    Images without either are then left out of their split, and counted in ``notes``.

    Each image is turned upright by its EXIF orientation, shown on white where it is transparent, converted (an
    animation gives its first frame), resized with a Lanczos filter so that it just covers ``image_size``, and
    cropped to its centre. An image of that size already keeps its pixels. Grey values of more than 8 bits are
    read as 8, 10, 12, 14 or 16 bits, the least that the highest value of all images needs; floating point as 0 .. 1,
    cut off at 1, or 0 .. 255 where a value is above 1.05.

    Loading the train split decodes the test split too, to name what is broken in it before a run is trained.

    The whole split is held in memory: N * channels * H * W bytes (70,000 images of 64x64x3 are 0.8 GiB).

    Args:
        root: Folder to look in.
        split: ``"train"`` or ``"test"``.
        image_size: Height and width of the result: one number for squares, or (H, W); None for images as they are, all
            of one size.
        channels: 3 for RGB or 1 for grey; None for grey if all images of both splits are grey, else RGB.
        recaptioned: File of rewritten captions; see ``recaptioned_from``.
        recaptioned_share: Probability of an image with both to be told the rewritten one; see ``mix_captions``.

    Returns:
        uint8 images [N, channels, H, W] with 256 levels, in the sorted order of their paths relative to the folder of
        the split; ``sample_names`` are paths relative to ``root``.

    Raises:
        DataError: If an argument is wrong, there are no images, it is unclear whether a folder is a split or a class,
            captions cannot be read or none is of this split, or images cannot be read or differ in size where they
            are taken as they are.
    """
    check_split(split)
    size = None if image_size is None else height_and_width(image_size)
    if channels not in (None, 1, 3):
        raise DataError(f"channels must be 1 (grey) or 3 (RGB), got {channels}; choose one of them")
    layout, captions = _captioned(root, read_layout(root, split), split, recaptioned, recaptioned_share)
    looks = in_threads(look_for_grey, layout.all_paths, "reading headers")
    grey = choose_grey_rule([highest for _, highest in looks])
    checked = sorted(set(layout.all_paths) - set(layout.paths)) if split == "train" else []
    mode = "L" if channels == 1 or (channels is None and all(is_grey for is_grey, _ in looks)) else "RGB"
    images, notes = decode_all(layout.paths, mode=mode, grey=grey, size=size, checked=checked)
    return ImageDataset(
        images=torch.from_numpy(images),
        labels=torch.tensor(layout.labels, dtype=torch.int64),
        num_levels=256,
        num_classes=max(1, len(layout.class_names)),
        name="folder",
        split=split,
        class_names=layout.class_names,
        split_source=layout.split_source,
        other_split_size=len(layout.all_paths) - len(layout.paths),
        notes=(*layout.notes, *grey.notes, *notes),
        train_files=layout.train_files,
        captions=captions,
        sample_names=tuple(path.relative_to(root).as_posix() for path in layout.paths),
    )


def _captioned(
    root: Path, layout: Layout, split: str, recaptioned: str, share: float
) -> tuple[Layout, tuple[str, ...] | None]:
    """The images that have captions, and these; all, and None, where no image of either split has one."""
    if not layout.captions.names and not recaptioned:
        return layout, None
    names = {path: path.relative_to(root).as_posix() for path in layout.all_paths}
    captions, notes = read_captions(root, layout.captions)
    if recaptioned:
        own = [names[path] for path in layout.paths]
        captions, more = recaptioned_from(Path(recaptioned), own, captions, every=names.values(), share=share)
        notes = (*notes, *more)
    if not captions:
        first = min(layout.captions.names)
        return replace(layout, notes=(*layout.notes, *notes, f"no captions, though there is {root / first}")), None
    own = [(path, label) for path, label in zip(layout.paths, layout.labels, strict=True) if names[path] in captions]
    if not own:
        raise DataError(
            f"of {len(layout.paths):,} images of the {split} split of {root} none has a caption, while "
            f"{len(captions):,} of the other split have; give each image one, or remove all captions"
        )
    if without := len(layout.paths) - len(own):
        notes = (f"images without a caption, left out: {without:,} of {len(layout.paths):,}", *notes)
    kept = replace(
        layout,
        paths=[path for path, _ in own],
        labels=[label for _, label in own],
        all_paths=[path for path, name in names.items() if name in captions],
        notes=(*layout.notes, *notes),
    )
    return kept, tuple(captions[names[path]] for path, _ in own)
