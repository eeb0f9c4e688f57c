"""Captions as a model is told them, and what of them it is not told."""

from __future__ import annotations

from pathlib import Path

from data import AnyDataset, ImageDataset, LatentDataset, Vocabulary
from runtime.messages import say
from runtime.processes.ranks import Ranks

from ..conditions import build_conditions
from ..config import Config
from .frozen import told_by_frozen


def told_as_trained(config: Config, dataset: AnyDataset, workdir: Path, ranks: Ranks) -> AnyDataset:
    """The data set with its captions as the model reads them; rank 0 says what is cut off or unknown."""
    dataset = told_by_frozen(config, dataset, workdir, ranks)
    if ranks.first and isinstance(dataset, (ImageDataset, LatentDataset)):
        for line in untold(config, dataset):
            say(line)
    return dataset


def untold(config: Config, dataset: ImageDataset | LatentDataset) -> list[str]:
    """Lines on captions of which a model that learns words is told a part."""
    text = build_conditions(config, dataset.kind).text
    if text is None or dataset.captions is None or dataset.encodings:
        return []
    known, where = dataset.vocabulary or Vocabulary.of(dataset.captions), f"{dataset.name} {dataset.split}"
    of = f"of {len(dataset):,} captions"
    unknown = known.unknown(dataset.captions)
    lines = []
    if unknown:
        count = sum(bool(known.unknown([caption])) for caption in dataset.captions)
        lines.append(
            f"{where}: {count:,} {of} have words that the model does not know, such as {unknown[0]!r}, which are left "
            "out"
        )
    cut = known.count_longer(dataset.captions, text.max_words)
    if cut:
        lines.append(
            f"{where}: {cut:,} {of} have more than max_words={text.max_words} words, and are cut off there; set it in "
            "data.condition_options"
        )
    return lines
