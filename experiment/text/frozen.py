"""Captions as a frozen text encoder reads them, encoded once and kept in the work directory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from zipfile import BadZipFile

import numpy as np
import torch

from data import AnyDataset, DataError, ImageDataset, LatentDataset, TableRows, TextKind
from models.text import TransformersEncoder
from runtime.messages import say
from runtime.processes.ranks import Ranks

from ..config import Config, parse_options
from ..from_checkpoints import said_of_images
from ..workdir import save_npz

T = TypeVar("T", bound=AnyDataset)


@lru_cache(maxsize=1)
def _opened(path: str, options: tuple[tuple[str, Any], ...]) -> TransformersEncoder:
    return TransformersEncoder(path, **dict(options))


def load_text_encoder(config: Config) -> TransformersEncoder:
    """The frozen encoder of ``data.text_encoder``.

    Raises:
        ValueError: In one line: there is none, transformers is missing, or an option is wrong.
    """
    data = config.data
    options = parse_options(data.get("text_options", ""))
    try:
        return _opened(str(Path(data.text_encoder).expanduser()), tuple(sorted(options.items())))
    except TypeError as error:
        known = "tokenizer, layer, max_length, pooling, masked, local_files_only, revision"
        raise ValueError(
            f"data.text_options={data.text_options} has an unknown option ({error}); known: {known}"
        ) from None
    except ValueError as error:
        raise ValueError(f"data.text_encoder={data.text_encoder}: {error}") from None


def text_kind_of(encoder: TransformersEncoder) -> TextKind:
    """The captions that an encoder reads, as networks and checkpoints know them."""
    return TextKind((), encoder.fingerprint, encoder.features, encoder.pooled_features)


def reads_by_frozen(config: Config) -> bool:
    """True of a model that is told captions by a frozen encoder."""
    return "text" in config.data.get("condition", ()) and bool(config.data.get("text_encoder"))


def told_by_frozen(config: Config, dataset: T, workdir: Path, ranks: Ranks) -> T:
    """A data set whose captions are told as ``data.text_encoder`` reads them, if the config names one.

    Each caption is encoded once, and kept in ``texts/`` of the work directory by its digest and the encoder's
    fingerprint: captions that are added to a data set are encoded alone. Rank 0 encodes, the others read.

    Raises:
        ValueError: In one line, if there is no such encoder, or the run was trained with another.
    """
    if not reads_by_frozen(config) or not isinstance(dataset, (ImageDataset, LatentDataset)) or dataset.encodings:
        return dataset
    if dataset.captions is None:
        raise DataError(f"data.text_encoder reads captions, which {dataset.name} does not have; leave it out")
    encoder = load_text_encoder(config)
    fingerprint = encoder.fingerprint
    check_text_encoder(config, workdir, fingerprint)
    captions = sorted(set(dataset.captions))
    tables = _kept_or_encoded(encoder, fingerprint, captions, workdir / "texts" / f"{dataset.split}.npz", ranks)
    numbers = {digest: k for k, digest in enumerate(tables.pop("captions").tolist())}
    rows = torch.tensor([numbers[_digest(caption)] for caption in dataset.captions])
    encodings = {name: TableRows(torch.from_numpy(table), rows) for name, table in tables.items()}
    return dataset._replace(encodings=encodings, text_encoder=fingerprint)


def told_alike(config: Config, dataset: T, other: AnyDataset) -> T:
    """A few samples, whose captions are told as those of another data set are; nothing is kept."""
    if dataset.captions is None:
        return dataset
    if other.vocabulary is not None:
        return dataset.with_words(other.vocabulary.words)
    if not other.encodings:
        return dataset
    encoder = load_text_encoder(config)
    encodings = fields_of(encoder.encode(dataset.captions), encoder)
    return dataset._replace(encodings=encodings, text_encoder=other.text_encoder)


def check_text_encoder(config: Config, workdir: Path, fingerprint: str) -> None:
    """Refuse another encoder than the one that a run was trained with, if it was.

    Raises:
        ValueError: If its weights, its tokenizer or its options are others.
    """
    theirs = said_of_images(workdir).get("text")
    if theirs is not None and theirs["encoder"] != fingerprint:
        what = "another text encoder than" if theirs["encoder"] else "words that it learned itself, not by"
        raise ValueError(
            f"{workdir} was trained with {what} data.text_encoder={config.data.text_encoder}; name what it was trained "
            "with, with the same data.text_options, or choose another --workdir"
        )


def _kept_or_encoded(
    encoder: TransformersEncoder, fingerprint: str, captions: list[str], path: Path, ranks: Ranks
) -> dict[str, np.ndarray]:
    """Tables with a row for each of the captions, and maybe for others, whose digests are ``captions`` in them."""
    told = json.dumps({"encoder": fingerprint, "torch": torch.__version__}, sort_keys=True)
    found: dict[str, np.ndarray] | None = None
    if ranks.first:
        found = _kept(path, told)
        known = set() if found is None else set(found["captions"].tolist())
        new = [caption for caption in captions if _digest(caption) not in known]
        if new:
            for line in (f"encodes {len(new):,} captions", *said_of_tokens(encoder, new, "captions")):
                say(line)
            encoded = _encoded(encoder, new)
            found = encoded if found is None else {k: np.concatenate((found[k], encoded[k])) for k in encoded}
            save_npz(path, found | {"fingerprint": np.array(told)})
    ranks.share(f"captions of {path.stem}", lambda: None)
    return found or _kept(path, told) or _encoded(encoder, captions)


def said_of_tokens(encoder: TransformersEncoder, texts: Sequence[str], name: str) -> list[str]:
    """Lines on texts of which an encoder reads a part."""
    longer, unknown = encoder.count_longer(texts), encoder.count_unknown(texts)
    of, lines = f"of {len(texts):,} {name}", []
    if longer:
        lines.append(f"{longer:,} {of} have more than {encoder.max_length} tokens, and are cut off there")
    if unknown:
        lines.append(f"{unknown:,} {of} have words that the text encoder does not know")
    return lines


def _digest(caption: str) -> str:
    return hashlib.sha256(caption.encode()).hexdigest()


def _encoded(encoder: TransformersEncoder, captions: list[str]) -> dict[str, np.ndarray]:
    text = encoder.encode(captions)
    tables = {name: one.numpy() for name, one in fields_of(text, encoder).items()}
    return {"captions": np.array([_digest(caption) for caption in captions]), **tables}


def fields_of(text: Any, encoder: TransformersEncoder) -> dict[str, torch.Tensor]:
    """Encoded texts by the names of a condition's fields."""
    pooled = {"pooled": text.pooled} if encoder.pooled_features else {}
    return {"tokens": text.tokens, "mask": text.mask, **pooled}


def _kept(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    """Encodings of an earlier command; None where there are none, of another encoder, or damaged."""
    try:
        with np.load(path) as found:
            kept = dict(found)
            return kept if str(kept.pop("fingerprint")) == fingerprint and "captions" in kept else None
    except (OSError, ValueError, KeyError, EOFError, BadZipFile):
        return None
