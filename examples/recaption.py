"""Rewrite the captions of a config's images by a captioner that is trained on few clean ones, as in DALL-E 3.

    python examples/recaption.py configs/text/scenes.py 2000 --config.data.options=wrong_captions=0.5
    python examples/recaption.py my_config.py clean.jsonl --config.data.root=photos

Clean are the first 2000 captions of scenes, or a file of lines {"file": "train/a.png", "caption": "..."}, in which
images are named from the root of the data. It writes recaptioned.jsonl, which training reads:

    python main.py --config my_config.py --mode train --config.data.options=recaptioned=recaptioned.jsonl
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from configs.default import get_default_config
from data import DataError, ImageDataset, captioned_as, read_caption_list
from data.sources.scene_words import captions_of
from experiment.build import build_dataset
from experiment.config import load_config
from tasks.captions import write_captions
from training.text.captioning import train_captioner


def main(
    config_file: str, clean: str, overrides: Sequence[str] = (), *, output: Path | None = None, steps: int = 1500
) -> None:
    """Train on the clean captions, and write a caption of each image of both splits."""
    config = load_config(config_file, overrides, defaults=get_default_config())
    splits = [build_dataset(config, split) for split in ("train", "test")]
    images = [split for split in splits if isinstance(split, ImageDataset)]
    if clean.isdecimal() and config.data.dataset == "scenes":
        captions = {f"train/{i}": caption for i, caption in enumerate(captions_of("train", int(clean)))}
    else:
        captions = read_caption_list(Path(clean))
    told, notes = captioned_as(images[0], captions)
    for note in notes:
        print(note)
    captioner = train_captioner(told, num_steps=steps)
    output = output or Path("recaptioned.jsonl")
    write_captions(output, captioner, images)
    print(f"learned from {len(told):,} clean captions, wrote {sum(map(len, images)):,} in {output}")


if __name__ == "__main__":
    try:
        if len(sys.argv) < 3:
            raise DataError("name a config, and the number or the file of clean captions, as at the top of this file")
        main(sys.argv[1], sys.argv[2], sys.argv[3:])
    except (ValueError, OSError) as error:
        sys.exit(str(error))
