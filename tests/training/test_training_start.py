"""The first lines of a training: how many images, of which classes, from which split, and where to."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_command

import main
from data import ImageDataset, load_dataset
from training.start_lines import data_lines


def _dataset(num_classes: int, **options: Any) -> ImageDataset:
    labels = torch.arange(180) % num_classes
    images = torch.zeros(180, 3, 8, 8, dtype=torch.uint8)
    return ImageDataset(images, labels, 256, num_classes, "shapes", "train", **options)


SHAPES = ("circle", "square", "triangle")
SEVEN = tuple("abcdefg")


@pytest.mark.parametrize(
    ("dataset", "expected"),
    [
        (
            _dataset(3, class_names=SHAPES, other_split_size=20),
            "180 train + 20 test, 3 classes: 0 circle, 1 square, 2 triangle → runs/a",
        ),
        (_dataset(1), "180 train, no classes → runs/a"),
        (_dataset(1, class_names=("cat",)), "180 train, no classes → runs/a"),
        (_dataset(3, other_split_size=1200), "180 train + 1,200 test, 3 classes without names → runs/a"),
        (_dataset(10, class_names=tuple("0123456789")), "180 train, 10 classes: 0, 1, 2, 3, 4 and 5 more → runs/a"),
        (_dataset(6, class_names=SEVEN[:6]), "180 train, 6 classes: 0 a, 1 b, 2 c, 3 d, 4 e, 5 f → runs/a"),
        (
            _dataset(7, class_names=SEVEN),
            "180 train, 7 classes: 0 a, 1 b, 2 c, 3 d, 4 e and 2 more → runs/a",
        ),
        (_dataset(2, class_names=("a\nb", "x" * 40)), f"180 train, 2 classes: 0 a b, 1 {'x' * 30}... → runs/a"),
    ],
)
def test_the_first_line_names_images_and_classes(dataset: ImageDataset, expected: str):
    first, second = data_lines(dataset, Path("runs/a"), num_parameters=1234, device="cpu")
    assert first == expected
    assert second == "shapes: images of 3x8x8, 256 grey levels; 1,234 parameters on cpu"


def test_training_begins_with_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for k in range(30):
        folder = tmp_path / "images" / SHAPES[k % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), k, np.uint8)).save(folder / f"{k}.png")
    here = [f"--config.data.root={tmp_path / 'images'}", "--config.data.image_size=8", "--config.training.num_steps=1"]
    assert main.run(tiny_command("train", tmp_path / "run", *here, config="vp/folder")) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if "images" in line or "train +" in line]
    assert lines[0] == f"27 train + 3 test, 3 classes: 0 circle, 1 square, 2 triangle → {tmp_path / 'run'}"
    assert "256 grey levels; one in ten held out, by a fixed permutation; " in lines[1]


@pytest.mark.parametrize("layout", ["one file", "two files", "both in one"])
def test_a_data_set_knows_the_size_of_its_other_split(tmp_path: Path, layout: str):
    def images(count: int) -> np.ndarray:
        return np.zeros((count, 4, 4, 1), np.uint8)

    if layout == "two files":
        np.savez(tmp_path / "train.npz", images=images(9))
        assert load_dataset("npz", root=tmp_path, split="train").other_split_size is None
        np.savez(tmp_path / "test.npz", images=images(4))
    arrays = {"images": images(13)} if layout == "one file" else {"train_images": images(9), "test_images": images(4)}
    np.savez(tmp_path / "all.npz", **arrays)
    root = tmp_path if layout == "two files" else tmp_path / "all.npz"
    train, test = (load_dataset("npz", root=root, split=split) for split in ("train", "test"))
    assert (train.other_split_size, test.other_split_size) == (len(test), len(train))


def test_digits_know_the_size_of_their_other_split():
    train, test = (load_dataset("digits", root="none", split=split) for split in ("train", "test"))
    assert (train.other_split_size, test.other_split_size) == (len(test), len(train)) == (360, 1437)
