"""Train a contrastive pair of scenes and captions, and write its embeddings as data of a prior and of a decoder.

    python examples/embed_scenes.py
    python examples/embed_scenes.py "a red three above a small blue seven" "a white zero left of a green one"

The first takes some minutes and writes downloads/embedded_scenes, which configs/text/scenes_prior.py and
scenes_decoder.py train on. The second writes prompts.npz there, which the prior is told by --input.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from data import DataError, ImageDataset, load_dataset
from tasks.embeddings import load_pair, save_pair, write_embeddings, write_prompts
from training.text.contrastive import train_pair


def main(
    prompts: Sequence[str] = (),
    folder: Path = Path("downloads/embedded_scenes"),
    num_images: int = 20_000,
    steps: int = 1500,
) -> None:
    """Write the embeddings of prompts; without any, train the pair and write those of all scenes."""
    if prompts:
        write_prompts(folder / "prompts.npz", load_pair(folder), prompts)
        print(f"wrote {len(prompts)} embeddings in {folder / 'prompts.npz'}")
        return
    options = {"num_images": num_images}
    splits = [load_dataset("scenes", root=".", split=split, options=options) for split in ("train", "test")]
    train, test = (split for split in splits if isinstance(split, ImageDataset))
    pair = train_pair(train, num_steps=steps)
    save_pair(folder, pair)
    for split in (train, test):
        write_embeddings(folder, pair, split)
    print(f"wrote the embeddings of {len(train)} and {len(test)} scenes in {folder}")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except DataError as error:
        sys.exit(str(error))
