"""Captions of the images of a folder: lines of JSON, or a text file beside each image."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import ImageDataset, load_dataset


def load(root: Path, split: str = "train") -> ImageDataset:
    dataset = load_dataset("folder", root=root, split=split)
    assert isinstance(dataset, ImageDataset)
    return dataset


def save(root: Path, *names: str) -> None:
    """Images of one grey each, numbered from 1."""
    for level, name in enumerate(names, start=1):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((4, 4), level, np.uint8)).save(root / name)


def write_lines(path: Path, *entries: dict[str, object] | str) -> None:
    path.write_text("\n".join(one if isinstance(one, str) else json.dumps(one) for one in entries) + "\n")


def found(dataset: ImageDataset) -> dict[int, str]:
    """The caption of each image, by its grey."""
    assert dataset.captions is not None and dataset.kind.text is not None
    return dict(zip(dataset.images[:, 0, 0, 0].tolist(), dataset.captions, strict=True))


def test_lines_of_the_root_name_images_of_both_splits(tmp_path: Path):
    save(tmp_path, "train/a/1.png", "train/a/2.png", "train/b/3.png", "test/a/4.png", "test/b/5.png", "val/6.png")
    write_lines(
        tmp_path / "captions.jsonl",
        {"file": "train/b/3.png", "caption": "  three \n threes "},
        {"file_name": "./train/a/1.png", "text": "eins, ünd ändere", "other": 7},
        "",
        {"file": "test/a/4.png", "caption": "four"},
        {"file": "train/a/2.png", "caption": ""},
        {"file": "val/6.png", "caption": "of no split"},
        {"file": "train/gone.png", "caption": "gone"},
        {"file": "test/b/5.txt"},
    )
    train, test = load(tmp_path), load(tmp_path, "test")
    assert found(train) == {1: "eins, ünd ändere", 3: "three threes"} and found(test) == {4: "four"}
    # classes are those of the folders all the same, and sizes those of what has captions
    assert train.class_names == test.class_names == ("a", "b") and train.labels.tolist() == [0, 1]
    assert train.other_split_size == 1 and test.other_split_size == 2
    assert "images without a caption, left out: 1 of 3" in train.notes
    assert "captions of images that are not there, left out: 2, such as train/gone.png" in train.notes
    assert not any("jsonl" in note for note in train.notes)
    assert train.subset(1).captions == ("eins, ünd ändere",)
    # a pixel that is decoded is of an image with a caption
    (tmp_path / "train" / "a" / "2.png").write_bytes(b"broken")
    assert found(load(tmp_path)) == found(train)


def test_lists_within_the_folders_of_splits_name_files_from_there(tmp_path: Path):
    save(tmp_path, "train/1.png", "test/2.png")
    for split, name in (("train", "1.png"), ("test", "2.png")):
        write_lines(tmp_path / split / "metadata.jsonl", {"file_name": name, "text": f"a {split} image"})
    assert found(load(tmp_path)) == {1: "a train image"} and found(load(tmp_path, "test")) == {2: "a test image"}
    # a list of this name goes before
    write_lines(
        tmp_path / "captions.jsonl", {"file": "train/1.png", "caption": "mine"}, {"file": "test/2.png", "text": "b"}
    )
    assert found(load(tmp_path)) == {1: "mine"}


def test_text_files_beside_images(tmp_path: Path):
    names = [f"{folder}/{i}.png" for folder in "ab" for i in range(10)]
    save(tmp_path, *names)
    before = {split: load(tmp_path, split).images[:, 0, 0, 0].tolist() for split in ("train", "test")}
    assert load(tmp_path).captions is None and load(tmp_path).kind.text is None
    for level, name in enumerate(names, start=1):
        (tmp_path / name).with_suffix(".txt").write_bytes(b"\xef\xbb\xbfnumber\n" + str(level).encode() + b"\n")
    (tmp_path / "a" / "3.txt").unlink()
    (tmp_path / "a" / "notes.txt").write_text("of no image")
    splits = {split: load(tmp_path, split) for split in ("train", "test")}
    for split, dataset in splits.items():
        # which images are held out does not depend on captions
        assert found(dataset) == {level: f"number {level}" for level in before[split] if level != 4}
    assert sum("1 .txt" in note for note in splits["train"].notes) == 1


def test_without_a_caption_nothing_is_left_out(tmp_path: Path):
    save(tmp_path, "train/1.png", "test/2.png")
    write_lines(tmp_path / "metadata.jsonl", {"file_name": "train/1.png", "label": 3})
    dataset = load(tmp_path)
    assert dataset.captions is None and len(dataset) == 1
    assert f"no captions, though there is {tmp_path / 'metadata.jsonl'}" in dataset.notes


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"file": "train/1.png"', "line 2 is not JSON"),
        ('["train/1.png", "one"]', "line 2 is not an object of JSON, got list"),
        ('{"caption": "one"}', "line 2 names no image, expected file or file_name"),
        ('{"file": 1, "caption": "one"}', "line 2 names no image"),
        ('{"file": "train/1.png", "caption": ["a", "b"]}', "line 2: the caption must be a text, got list"),
        ('{"file": "train/../train/1.png", "caption": "b"}', "line 2: train/1.png has a caption already"),
    ],
)
def test_lines_that_cannot_be_read_are_refused_by_number(tmp_path: Path, refuses, line: str, words: str):
    save(tmp_path, "train/1.png", "test/2.png")
    write_lines(tmp_path / "captions.jsonl", {"file": "train/1.png", "caption": "one"}, line)
    with refuses(tmp_path / "captions.jsonl", words):
        load(tmp_path)


def test_a_split_without_captions_and_other_encodings_are_refused(tmp_path: Path, refuses):
    save(tmp_path, "train/1.png", "test/2.png")
    write_lines(tmp_path / "captions.jsonl", {"file": "train/1.png", "caption": "one"})
    with refuses("of 1 images of the test split", "none has a caption, while 1 of the other split have"):
        load(tmp_path, "test")
    (tmp_path / "captions.jsonl").write_bytes('{"file": "train/1.png", "caption": "ü"}'.encode("latin-1"))
    with refuses("captions.jsonl line 1 is not UTF-8", "save it as UTF-8"):
        load(tmp_path)
    (tmp_path / "captions.jsonl").unlink()
    (tmp_path / "train" / "1.txt").write_bytes(b"\xff")
    with refuses(tmp_path / "train" / "1.txt", "is not UTF-8"):
        load(tmp_path)
