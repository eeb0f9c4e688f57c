"""Embeddings of a contrastive pair as data: of a prior, p(image embedding | caption), and of a decoder to images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from data import DataError, ImageDataset, Vocabulary
from experiment.workdir import save_npz, write_json
from models.backbones import WordEncoder
from models.contrastive import ContrastivePair, ImageEncoder
from runtime.files import write_atomically

_WEIGHTS, _OPTIONS = "pair.safetensors", "pair.json"


def save_pair(folder: Path, pair: ContrastivePair) -> None:
    """Write a pair into a folder, as ``pair.safetensors`` and ``pair.json``."""
    image, text = pair.image_encoder, pair.text_encoder
    write_atomically(
        folder / _WEIGHTS, save_tensors({name: one.contiguous() for name, one in pair.state_dict().items()})
    )
    options = {
        "features": pair.features,
        "image": {"image_shape": image.image_shape, "features": image.features},
        "text": {
            "features": text.embed.embedding_dim,
            "max_words": text.max_words,
            "num_layers": len(text.layers),
        },
        "words": pair.vocabulary.words,
    }
    write_json(folder / _OPTIONS, options)


def load_pair(folder: Path) -> ContrastivePair:
    """Read a pair that ``save_pair`` wrote, in evaluation mode.

    Raises:
        DataError: If the folder holds none.
    """
    missing = [name for name in (_WEIGHTS, _OPTIONS) if not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"{folder} holds no contrastive pair, {missing[0]} is missing; run python examples/embed_scenes.py"
        )
    options = json.loads((folder / _OPTIONS).read_text())
    words = tuple(options["words"])
    image_shape = tuple(options["image"].pop("image_shape"))
    pair = ContrastivePair(
        ImageEncoder(image_shape, **options["image"]),
        WordEncoder(num_words=len(words), **options["text"]),
        Vocabulary(words),
        features=options["features"],
    )
    pair.load_state_dict(load_tensors((folder / _WEIGHTS).read_bytes()))
    return pair.eval().requires_grad_(False)


def write_embeddings(folder: Path, pair: ContrastivePair, dataset: ImageDataset) -> None:
    """Write the embeddings of a split, all of length sqrt(D), as two npz data sets.

    ``prior/SPLIT.npz`` has the images' embeddings as ``vectors`` [N, D], which a prior draws, and those of their
    captions as ``values`` [N, D], which it is told. ``decoder/SPLIT.npz`` has the images with their embeddings as
    ``values``.

    Args:
        folder: Where to.
        pair: The pair.
        dataset: A split of images with captions.

    Raises:
        DataError: If it has no captions, or some that the pair cannot read.
    """
    if dataset.captions is None:
        raise DataError(f"{dataset.name} has no captions, which a prior is told; take scenes")
    images = pair.embed_images(dataset.space.encode(dataset.images)).numpy()
    captions = pair.embed_captions(dataset.captions).numpy()
    save_npz(folder / "prior" / f"{dataset.split}.npz", {"vectors": images, "values": captions})
    pixels = dataset.images.permute(0, 2, 3, 1).contiguous().numpy()
    decoded = {"images": pixels, "values": images, "num_levels": np.array(dataset.num_levels)}
    save_npz(folder / "decoder" / f"{dataset.split}.npz", decoded)


def write_prompts(path: Path, pair: ContrastivePair, prompts: Sequence[str]) -> None:
    """Write the embeddings of prompts as ``values`` [N, D] of a file, for ``--input`` of a prior.

    Raises:
        DataError: If a prompt has an unknown word or none, or is too long.
    """
    save_npz(path, {"values": pair.embed_captions(prompts).numpy()})
