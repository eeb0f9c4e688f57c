"""Splits and classes of folders, and the files that are left out of them."""

import os

import numpy as np
import pytest
from PIL import Image

from data import load_dataset


def load(root, split="train"):
    return load_dataset("folder", root=root, split=split, image_size=2, channels=1)


def save(root, *names):
    """Save constant images, numbered from 1, whose grey level tells which file they are."""
    for level, name in enumerate(names, start=1):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((2, 2), level, np.uint8)).save(path, Image.registered_extensions().get(path.suffix))


def many(folder, count=10):
    return [f"{folder}/{i}.png" for i in range(count)]


def levels(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("classes", "split"),
    [
        (["bus", "car", "train"], "train"),
        (["test", "trial"], "test"),
        (["a", "train", "val"], ""),
        (["Train", "bus"], "Train"),
        (["TRAIN", "dev"], "TRAIN"),
        (["Test", "trial"], "Test"),
    ],
)
def test_a_split_beside_classes_is_refused_in_both_readings_or_said(tmp_path, refuses, classes, split):
    for name in classes:
        save(tmp_path, *many(name))
    if not split:
        dataset = load(tmp_path)
        assert len(dataset) == 10 and dataset.split_source == "folders train/ and val/, val/ as the test split"
        assert any(f"10 in {tmp_path / 'a'}" in note and "train, val" in note for note in dataset.notes)
        return
    for asked in ("train", "test"):
        with refuses(f"folder {split!r} beside", "a split or a class", f"rename {split!r}"):
            load(tmp_path, asked)


@pytest.mark.parametrize(
    ("train", "test"), [("Train", "Test"), ("TRAIN", "test"), ("training", "testing"), ("train", "Valid")]
)
def test_splits_are_found_in_any_case_and_spelling(tmp_path, train, test):
    save(tmp_path, f"{train}/a/1.png", f"{train}/b/2.png", f"{test}/b/3.png")
    assert levels(load(tmp_path)) == [1, 2]
    held_out = load(tmp_path, "test")
    assert levels(held_out) == [3] and held_out.labels.tolist() == [1]
    assert held_out.class_names == ("a", "b")
    assert held_out.split_source.startswith(f"folders {train}/ and {test}/")


@pytest.mark.parametrize("name", ["train", "Train", "TRAIN"])
def test_a_train_folder_alone_is_the_split_in_any_case(tmp_path, name):
    save(tmp_path, *many(f"{name}/a"), *many(f"{name}/b"))
    dataset = load(tmp_path)
    assert len(dataset) == 20 and dataset.class_names == ("a", "b") and dataset.split_source == f"folder {name}/"


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_val_is_the_test_split_where_there_is_no_other(tmp_path, name):
    save(tmp_path, "train/1.png", f"{name}/2.png")
    assert levels(load(tmp_path, "test")) == [2]
    assert (load(tmp_path).class_names, load(tmp_path).num_classes) == ((), 1)
    assert load(tmp_path).split_source == f"folders train/ and {name}/, {name}/ as the test split"
    save(tmp_path / "test", "a.png", "b.png", "c.png")
    dataset = load(tmp_path, "test")
    assert levels(dataset) == [1, 2, 3] and dataset.split_source == "folders train/ and test/"
    assert any(f"1 in {tmp_path / name}" in note for note in dataset.notes)


def test_what_may_well_be_classes_are_classes(tmp_path):
    for case, names in enumerate((["invalid", "valid"], ["swimming", "training"], ["val"])):
        root = tmp_path / str(case)
        for name in names:
            save(root, *many(name))
        assert load(root).class_names == tuple(names)
        assert load(root).split_source.startswith("one in ten")
        assert load(root).notes == (
            f"read as classes, though splits are named so too: {names[-1]}; if one is a split, put the classes into "
            "folders train and test",
        )


@pytest.mark.parametrize(
    ("names", "said"),
    [
        # without splits at the top: whole folders of classes, or of a data set one level too high
        (["a/train", "a/test", "b/train", "b/dev"], ["a"]),
        (["data/Training/a", "data/validation/b"], ["data"]),
        (["bus/test", "bus/val", "car/test"], ["bus"]),
        (["x/y/train/a", "x/y/test/a"], ["x/y"]),
        # within the split alone that is loaded
        (["train/x/train", "train/x/val", "test/x"], ["train/x"]),
        (["train/x/train", "test/x/test"], []),
        (["train/1", "test/2", "old/train", "old/test"], []),
    ],
)
def test_splits_below_the_top_are_read_whole_which_is_said(tmp_path, names, said):
    for name in names:
        save(tmp_path, *many(name))
    notes = [note for note in load(tmp_path).notes if note.startswith("read whole, test images too")]
    expected = ", ".join(str(tmp_path / folder) for folder in said)
    assert [note.split(": ")[1].split("; ")[0] for note in notes] == [expected] * bool(said)


@pytest.mark.parametrize("names", [["train_set", "test-set"], ["train2017", "val2017"], ["bus", "car", "validation"]])
def test_classes_named_like_splits_are_said(tmp_path, names):
    for name in names:
        save(tmp_path, *many(name))
    like_splits = ", ".join(sorted(set(names) - {"bus", "car"}))
    assert load(tmp_path).notes[0].startswith(f"read as classes, though splits are named so too: {like_splits}; ")


def test_classes_named_like_splits_within_a_split_are_said(tmp_path):
    save(tmp_path, *many("train/train"), *many("train/val"), *many("test/train"))
    assert any("though splits are named so too: train, val; " in note for note in load(tmp_path).notes)


def test_classes_that_only_begin_like_splits_are_not_said(tmp_path):
    save(tmp_path, *many("trains"), *many("testudo"), *many("valley"))
    assert load(tmp_path).notes == ()


def test_two_folders_for_one_split_are_refused(tmp_path, refuses):
    save(tmp_path, "train/1.png", "val/1.png", "valid/1.png")
    with refuses(tmp_path / "val", tmp_path / "valid", "both be the test split"):
        load(tmp_path)


def test_numbers_in_names_of_classes_are_sorted_by_their_value(tmp_path):
    save(tmp_path, *(f"train/{name}/x.png" for name in ("10", "2", "1", "9")))
    dataset = load(tmp_path)
    assert dataset.class_names == ("1", "2", "9", "10")
    # the images keep the order of their paths
    assert (levels(dataset), dataset.labels.tolist()) == ([3, 1, 2, 4], [0, 3, 1, 2])
    save(
        tmp_path, "train/y.png", *(f"train/{name}/y.png" for name in ("class 10", "class 9", "a", "B", "01", "٣", "①"))
    )
    expected = (".", "01", "1", "2", "٣", "9", "10", "B", "a", "class 9", "class 10", "①")
    assert load(tmp_path).class_names == expected


def test_every_kind_of_file_that_can_be_read_is(tmp_path):
    names = [f"train/{suffix[1:]}/x{suffix}" for suffix in (".jfif", ".ppm", ".jp2", ".tga", ".png", ".JPG", ".webp")]
    if ".avif" in Image.registered_extensions():
        names.append("train/avif/x.avif")
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        kind = Image.registered_extensions()[(tmp_path / name).suffix.lower()]
        Image.new("RGB", (8, 8), (200, 100, 50)).save(tmp_path / name, kind)
    dataset = load_dataset("folder", root=tmp_path, split="train")
    assert dataset.num_classes == len(dataset) == len(names) and dataset.notes == ()
    error = (dataset.images.float() - dataset.images.new_tensor([200, 100, 50]).float()[:, None, None]).abs()
    assert error.max() <= 8


def test_what_is_left_out_is_counted(tmp_path, refuses):
    save(tmp_path, "a/1.png", "a/2.png", "c/3.png", "loose.png")
    for name in ("b/1.heic", "b/2.HEIC", "a/notes.txt", "a/README", "b/.hidden.raw"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("no image")
    (tmp_path / "empty").mkdir()
    dataset = load(tmp_path)
    assert dataset.class_names == (".", "a", "c")
    left_out, no_class, loose = dataset.notes
    assert "2 .heic, 1 .txt, 1 without extension" in left_out or "2 .heic, 1 without extension, 1 .txt" in left_out
    assert f"b, empty in {tmp_path}" in no_class
    assert loose == "images in no class folder are a class of their own, '.': 1"
    with refuses("no images", "1 .heic"):
        (tmp_path / "raw" / "train").mkdir(parents=True)
        (tmp_path / "raw" / "train" / "1.heic").write_text("no image")
        load(tmp_path / "raw")


def test_an_empty_folder_of_one_split_is_a_class_of_both(tmp_path):
    save(tmp_path, "train/a/1.png", "test/b/1.png")
    (tmp_path / "train" / "b").mkdir()
    assert load(tmp_path).class_names == ("a", "b") and load(tmp_path).notes == ()


def test_a_pipe_is_not_waited_for(tmp_path):
    save(tmp_path, "train/1.png")
    os.mkfifo(tmp_path / "train" / "2.png")
    assert levels(load(tmp_path)) == [1]


def test_a_home_folder_is_found(tmp_path, monkeypatch, refuses):
    save(tmp_path / "my images", "train/1.png")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert levels(load("~/my images")) == [1]
    with refuses("~nobody-of-that-name/images", "write it in full"):
        load("~nobody-of-that-name/images")
