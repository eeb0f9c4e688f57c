"""Captions of images by a captioner, as a file that training reads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from data import DataError, ImageDataset
from models.text.captioner import Captioner
from runtime.files import write_atomically


def write_captions(path: Path, captioner: Captioner, splits: Sequence[ImageDataset]) -> None:
    """Write a caption of each image, in lines ``{"file": NAME, "caption": "..."}`` by the names of the data set.

    Args:
        path: Where to; ``data.options=recaptioned=PATH`` reads it.
        captioner: The captioner.
        splits: Splits of one data set.

    Raises:
        DataError: If images have no names.
    """
    lines = []
    for split in splits:
        if not split.sample_names:
            raise DataError(f"images of {split.name} have no names, which captions are told by; take a folder")
        captions = captioner.caption(split.space.encode(split.images))
        told = zip(split.sample_names, captions, strict=True)
        lines += [json.dumps({"file": name, "caption": caption}, ensure_ascii=False) for name, caption in told]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape"))
