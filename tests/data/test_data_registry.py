import subprocess
import sys
from pathlib import Path

import pytest
import torch
from sklearn.datasets import load_digits

from data import (
    ImageDataset,
    ImageKind,
    available_datasets,
    image_kind,
    load_dataset,
    register_dataset,
    registry,
)


def test_digits_splits_are_a_fixed_partition_of_the_source():
    train, test = (load_dataset("digits", root="unused", split=split) for split in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert (train.image_shape, train.num_levels, train.num_classes, train.num_dims) == ((1, 8, 8), 17, 10, 64)
    pixels, labels = load_digits(return_X_y=True)
    source = sorted((*image, label) for image, label in zip(pixels.astype(int).tolist(), labels.tolist(), strict=True))
    found = []
    for part in (train, test):
        flat = part.images.flatten(1).tolist()
        found += [(*image, label) for image, label in zip(flat, part.labels.tolist(), strict=True)]
    assert sorted(found) == sorted(source)
    assert int(train.images.max()) == 16
    assert train.class_names == tuple("0123456789")
    assert test.split_source == "360 images held out, by a fixed permutation"


def test_digits_are_the_same_every_time():
    first, second = (load_dataset("digits", root="unused", split="test") for _ in range(2))
    assert torch.equal(first.images, second.images)
    assert first.labels[:12].tolist() == [1, 3, 4, 5, 8, 5, 5, 0, 4, 7, 2, 6]


def test_unknown_names_and_splits_list_the_choices(refuses):
    assert {"cifar10", "digits", "folder", "mnist", "npz"} <= set(available_datasets())
    with refuses("'imagenet'", *available_datasets()):
        load_dataset("imagenet", root=".", split="train")
    with refuses("'valid'", "train, test"):
        load_dataset("digits", root=".", split="valid")


def test_sizes_that_are_not_the_datasets_own_are_refused(refuses):
    assert len(load_dataset("digits", root=".", split="test", image_size=8, channels=1)) == 360
    with refuses("8x8", "image_size=32"):
        load_dataset("digits", root=".", split="test", image_size=32)
    with refuses("1 channels", "channels=3"):
        load_dataset("digits", root=".", split="test", channels=3)


def test_an_empty_root_is_refused(refuses):
    with refuses("root is empty"):
        load_dataset("mnist", root="", split="test")


def test_a_users_dataset_gets_the_options_it_names(monkeypatch, tmp_path):
    monkeypatch.setattr(registry.DATASETS, "_factories", dict(registry.DATASETS._factories))
    calls = []

    @register_dataset("mine")
    def load_mine(*, root, split, image_size):
        calls.append((root, split, image_size))
        return ImageDataset(torch.zeros(1, 1, 4, 4, dtype=torch.uint8), torch.zeros(1).long(), 2, 1, "mine", split)

    assert load_dataset("mine", root=str(tmp_path), split="test", image_size=4).name == "mine"
    assert calls == [(tmp_path, "test", 4)]
    assert "mine" in available_datasets()
    with pytest.raises(ValueError, match="dataset 'digits' is already registered by"):
        register_dataset("digits")(load_mine)


@pytest.mark.slow
def test_the_package_imports_none_of_its_siblings():
    script = (
        "import sys, data; "
        "names = {'sde_lib','models','samplers','likelihood','training','evaluation','configs','sklearn'}; "
        "sys.exit(str(names & set(sys.modules)) if names & set(sys.modules) else 0)"
    )
    checkout = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=checkout)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", ["mnist", "folder", "npz"])
def test_missing_data_says_what_to_put_where(refuses, tmp_path, name):
    with refuses(tmp_path / "nothing"):
        load_dataset(name, root=tmp_path / "nothing", split="train", image_size=8)


def test_what_is_known_before_loading_is_what_loading_gives(tmp_path):
    digits = load_dataset("digits", root=".", split="test")
    assert image_kind("digits") == digits.kind
    # as their authors publish them
    assert image_kind("mnist") == ImageKind((1, 28, 28), 256, 10, tuple("0123456789"))
    names = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    assert image_kind("cifar10") == ImageKind((3, 32, 32), 256, 10, names)
    assert image_kind("folder") is None and image_kind("npz") is None and image_kind("mine") is None
