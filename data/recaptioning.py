"""Captions that were rewritten, by the names of their images, and mixed with the originals."""

import hashlib
import posixpath
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from .base import ImageDataset
from .errors import DataError
from .sources.folder_captions import read_caption_lines

REWRITTEN_SHARE = 0.95  # of images that are told a rewritten caption, as DALL-E 3 was trained


def read_caption_list(path: Path) -> dict[str, str]:
    """Read lines ``{"file": "train/a.png", "caption": "..."}``, with images named from the root of their data set.

    Returns:
        The captions by image; one that is empty is none.

    Raises:
        DataError: If the file or a line cannot be read, or an image has two captions.
    """
    captions: dict[str, str] = {}
    for where, image, caption in read_caption_lines(path):
        image = posixpath.normpath(image)
        if image in captions:
            raise DataError(f"{where}: {image} has a caption already; keep one line for each image")
        captions[image] = caption
    return {image: caption for image, caption in captions.items() if caption}


def mix_captions(
    originals: Mapping[str, str], rewritten: Mapping[str, str], *, share: float = REWRITTEN_SHARE
) -> dict[str, str]:
    """Choose between the original caption and the rewritten one of each image that has both.

    An image is told the rewritten one if u < share, where u in [0, 1) is a function of its name alone, the first 8
    bytes of its SHA-256: whatever other images there are, and at a higher share those of a lower one, and more.

    Args:
        originals: By image.
        rewritten: By image.
        share: Probability of the rewritten one, 0 .. 1; 0.95 in DALL-E 3.

    Returns:
        The caption of each image that has one or the other.

    Raises:
        DataError: If the share is no probability.

    Source: Betker et al. 2023, "Improving image generation with better captions", Section 3.
    """
    if isinstance(share, bool) or not isinstance(share, (int, float)) or not 0 <= share <= 1:
        raise DataError(f"recaptioned_share must be a probability, 0 .. 1, got {share!r}; try recaptioned_share=0.95")
    return {
        image: rewritten[image]
        if image in rewritten and (image not in originals or _uniform(image) < share)
        else originals[image]
        for image in {**originals, **rewritten}
    }


def recaptioned_from(
    path: Path, names: Sequence[str], originals: Mapping[str, str], *, every: Iterable[str], share: float
) -> tuple[dict[str, str], tuple[str, ...]]:
    """``mix_captions`` with those of a file.

    Args:
        path: The file; see ``read_caption_list``.
        names: Images of the split.
        originals: Captions by image, also of the other split.
        every: Images of both splits.
        share: See ``mix_captions``.

    Returns:
        The captions by image, and lines for the user: on images without a rewritten one, and on captions of images
        that are not there.

    Raises:
        DataError: If the file cannot be read, or is of other data: none of its images is there.
    """
    found, there = read_caption_list(path), set(every)
    rewritten = {image: caption for image, caption in found.items() if image in there}
    if not rewritten:
        first = next(iter(found), "none")
        raise DataError(
            f"recaptioned={path} is of other data: it has captions of {len(found):,} images, such as {first}, expected "
            f"some of {len(there):,}, such as {names[0]}; name the file that was written of these images"
        )
    notes = []
    if without := sum(image not in rewritten for image in names):
        notes.append(f"images without a rewritten caption, which keep what they have: {without:,} of {len(names):,}")
    if gone := [image for image in found if image not in there]:
        notes.append(f"rewritten captions of images that are not there, left out: {len(gone):,}, such as {gone[0]}")
    return mix_captions(originals, rewritten, share=share), tuple(notes)


def captioned_as(dataset: ImageDataset, captions: Mapping[str, str]) -> tuple[ImageDataset, tuple[str, ...]]:
    """The images of a split that have one of these captions, told it; and lines for the user on others.

    Args:
        dataset: Images with names.
        captions: By image.

    Raises:
        DataError: If there is none.
    """
    rows = [row for row, name in enumerate(dataset.sample_names) if name in captions]
    where = f"the {dataset.split} split of {dataset.name}"
    if not rows:
        some = f", such as {dataset.sample_names[0]}" if dataset.sample_names else ", which have no names"
        raise DataError(
            f"none of {len(captions):,} captions is of an image of {where}{some}; name images from the root of the data"
        )
    names = tuple(dataset.sample_names[row] for row in rows)
    gone = len(captions) - len(rows)
    notes = (f"captions of images that are not in {where}, left out: {gone:,}",) if gone else ()
    chosen = torch.tensor(rows)
    kept = {
        field: one[chosen] for field in ("values", "paired", "masks") if (one := getattr(dataset, field)) is not None
    }
    told = replace(
        dataset, images=dataset.images[chosen], labels=dataset.labels[chosen], sample_names=names,
        captions=tuple(captions[name] for name in names), encodings={}, text_encoder="", vocabulary=None, **kept,
    )  # fmt: skip
    return told, notes


def _uniform(name: str) -> float:
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
