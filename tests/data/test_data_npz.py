import io
import pickle

import numpy as np
import pytest
import torch

from data import load_dataset

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (20, 5, 6, 3)).astype(np.uint8)
LABELS = np.arange(20) % 4


def load(root, split="train", **options):
    return load_dataset("npz", root=root, split=split, **options)


def save(path, **arrays):
    np.savez(path, **arrays)
    return path


def test_classes_may_be_named(tmp_path, refuses):
    for split in ("train", "test"):
        save(tmp_path / f"{split}.npz", images=IMAGES, labels=LABELS, class_names=["north", "east", "south", "west"])
    dataset = load(tmp_path)
    assert dataset.class_names == ("north", "east", "south", "west") and dataset.num_classes == 4
    assert dataset.split_source == "files train.npz and test.npz"
    more = save(tmp_path / "more.npz", images=IMAGES, labels=LABELS, class_names=list("abcdef"))
    assert load(more).num_classes == 6 and load(more).split_source.startswith("one in ten")
    assert load(save(tmp_path / "none.npz", images=IMAGES, labels=LABELS)).class_names == ()
    fewer = save(tmp_path / "fewer.npz", images=IMAGES, labels=LABELS, class_names=["a", "b"])
    with refuses(fewer, "labels must be 0 .. 1, got 3"):
        load(fewer)
    for wrong in (np.arange(4), np.array([["a", "b"], ["c", "d"]])):
        with refuses("class_names must be text [num_classes]"):
            load(save(tmp_path / "wrong.npz", images=IMAGES, labels=LABELS, class_names=wrong))
    two = save(tmp_path / "two.npz", train_images=IMAGES, test_images=IMAGES)
    assert load(two).split_source == "arrays train_images and test_images"


@pytest.mark.parametrize("keys", [("images", "labels"), ("arr_0", "arr_1")])
def test_one_file_is_divided_into_a_fixed_partition(tmp_path, keys):
    path = save(tmp_path / "all.npz", **dict(zip(keys, (IMAGES, LABELS), strict=True)))
    train, test = load(path), load(path, "test")
    assert (len(train), len(test), train.num_classes, train.num_levels) == (18, 2, 4, 256)
    held_out = [12, 15]
    kept = [i for i in range(20) if i not in held_out]
    for part, indices in ((train, kept), (test, held_out)):
        assert np.array_equal(part.images.numpy(), IMAGES.transpose(0, 3, 1, 2)[indices])
        assert part.labels.tolist() == LABELS[indices].tolist()


def test_a_folder_holds_a_file_a_split(tmp_path, refuses):
    save(tmp_path / "train.npz", images=IMAGES, labels=LABELS)
    with refuses(tmp_path / "test.npz"):
        load(tmp_path, "test")
    save(tmp_path / "test.npz", images=IMAGES[:3], labels=LABELS[:3] + 4)
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (len(train), len(test)) == (20, 3)
    assert test.labels.tolist() == [4, 5, 6]
    assert train.num_classes == test.num_classes == 7
    save(tmp_path / "test.npz", vectors=np.random.default_rng(0).normal(size=(3, 2)))
    for split in ("train", "test"):
        with refuses("one split holds images, the other vectors"):
            load(tmp_path, split)


def test_one_file_may_hold_both_splits(tmp_path, refuses):
    path = save(
        tmp_path / "both.npz",
        train_images=IMAGES,
        train_labels=LABELS,
        test_images=IMAGES[::-1],
        test_labels=LABELS + 1,
        num_levels=256,
    )
    train, test = load(path), load(path, "test")
    assert (len(train), len(test)) == (20, 20)
    assert np.array_equal(test.images.numpy(), IMAGES.transpose(0, 3, 1, 2)[::-1])
    assert train.num_classes == test.num_classes == 5
    only = save(tmp_path / "only.npz", train_images=IMAGES)
    assert len(load(only)) == 20
    with refuses(only, "test_images"):
        load(only, "test")


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        (IMAGES[..., 0], IMAGES[:, None, :, :, 0]),
        (IMAGES.transpose(0, 3, 1, 2), IMAGES.transpose(0, 3, 1, 2)),
        (IMAGES[..., :1], IMAGES[..., :1].transpose(0, 3, 1, 2)),
        # Both axes could be channels: the convention, channels last, decides.
        (IMAGES[:, :3], IMAGES[:, :3].transpose(0, 3, 1, 2)),
    ],
)
def test_axes(tmp_path, images, expected):
    dataset = load(save(tmp_path / "x.npz", train_images=images))
    assert np.array_equal(dataset.images.numpy(), expected)
    assert dataset.images.is_contiguous()
    assert dataset.labels.tolist() == [0] * 20 and dataset.num_classes == 1


def test_levels_and_classes_may_be_stated(tmp_path, refuses):
    path = save(tmp_path / "x.npz", train_images=IMAGES % 17, train_labels=LABELS, num_levels=17, num_classes=10)
    assert (load(path).num_levels, load(path).num_classes) == (17, 10)
    path = save(tmp_path / "y.npz", train_images=IMAGES, num_levels=17)
    with refuses(path, "0 .. 16"):
        load(path)
    with refuses("5x6", "image_size=5"):
        load(save(tmp_path / "z.npz", train_images=IMAGES), image_size=5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"pictures": IMAGES}, ["images or arr_0", "pictures"]),
        ({"images": IMAGES.astype(np.float32)}, ["float32", "uint8"]),
        ({"images": IMAGES[0, 0]}, ["[6, 3]"]),
        ({"images": np.zeros((9, 8, 8, 7), np.uint8)}, ["[9, 8, 8, 7]"]),
        ({"images": IMAGES[:0]}, ["0 images"]),
        ({"images": IMAGES[:1]}, ["1 images"]),
        ({"images": IMAGES, "labels": LABELS[:7]}, ["7 labels, expected 20"]),
        ({"images": IMAGES, "labels": LABELS - 1}, ["-1"]),
        ({"images": IMAGES, "labels": LABELS.astype(float)}, ["float64"]),
        ({"images": IMAGES, "labels": np.eye(20, dtype=int)}, ["[20, 20]"]),
        ({"images": IMAGES, "values": np.ones((7, 2))}, ["7 rows of values, expected 20"]),
        ({"images": IMAGES, "values": LABELS}, ["values must be finite floats [N, K] or [N], got int64 [20]"]),
        ({"images": IMAGES, "values": np.ones((20, 0))}, ["got float64 [20, 0]"]),
        ({"images": IMAGES, "values": np.ones((20, 1, 1))}, ["got float64 [20, 1, 1]"]),
        ({"images": IMAGES, "values": np.r_[np.ones(18), np.inf, np.nan]}, ["got 2 of 20 rows that are not finite"]),
        ({"images": IMAGES, "values": np.full(20, 1e300)}, ["got 20 of 20 rows that are not finite"]),
        ({"images": IMAGES, "num_levels": np.array([2, 3])}, ["num_levels"]),
        ({"images": IMAGES, "num_levels": 1000}, ["1000"]),
        ({"images": IMAGES, "labels": LABELS, "num_classes": 2}, ["0 .. 1"]),
    ],
)
def test_wrong_arrays_are_refused(tmp_path, refuses, arrays, words):
    path = save(tmp_path / "x.npz", **arrays)
    with refuses(*words):
        load(path)


def test_values_go_with_their_samples(tmp_path, refuses):
    values = np.stack([IMAGES.reshape(20, -1).mean(1) / 255, LABELS], 1)
    whole = load(save(tmp_path / "x.npz", images=IMAGES, labels=LABELS, values=values))
    assert whole.values.dtype == torch.float32 and whole.num_values == whole.kind.num_values == 2
    for one in (whole, load(tmp_path / "x.npz", "test"), whole.subset(3)):
        assert len(one.values) == len(one)
        assert torch.allclose(one.values[:, 0], one.images.flatten(1).float().mean(1) / 255)
        assert one.values[:, 1].tolist() == one.labels.tolist()
    # one value a sample may be [N]; both splits of one file
    vectors = RANDOM.randn(20, 2)
    both = {f"{split}_{name}": array for split in ("train", "test") for name, array in
            {"vectors": vectors, "values": vectors[:, 0]}.items()}  # fmt: skip
    one = load(save(tmp_path / "y.npz", **both), "test")
    assert one.kind.num_values == 1 and np.allclose(one.values.numpy(), vectors[:, :1])
    assert load(save(tmp_path / "z.npz", images=IMAGES)).kind.num_values == 0
    both["test_values"] = vectors
    with refuses("train has 1 values a sample, the other split 2"):
        load(save(tmp_path / "y.npz", **both))
    del both["test_values"]
    with refuses("train has 1 values a sample, the other split 0"):
        load(save(tmp_path / "y.npz", **both))


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_pickled_arrays_are_refused_and_not_executed(tmp_path, refuses):
    bomb = np.empty(1, dtype=object)
    bomb[0] = Bomb(tmp_path / "executed")
    buffer = io.BytesIO()
    np.savez(buffer, images=bomb)
    (tmp_path / "executed").unlink(missing_ok=True)
    path = tmp_path / "x.npz"
    path.write_bytes(buffer.getvalue())
    with refuses(path, "pickle"):
        load(path)
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "executed")))
    with refuses(path):
        load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("compressed", [False, True])
def test_truncation_anywhere_is_one_line(tmp_path, refuses, compressed):
    path = tmp_path / "x.npz"
    (np.savez_compressed if compressed else np.savez)(path, images=IMAGES, labels=LABELS)
    content = path.read_bytes()
    for keep in (0, 1, 3, 50, len(content) // 2, len(content) - 30, len(content) - 1):
        path.write_bytes(content[:keep])
        with refuses(path, "truncated"):
            load(path)


def test_a_flipped_bit_is_found(tmp_path, refuses):
    path = save(tmp_path / "x.npz", images=IMAGES)
    content = bytearray(path.read_bytes())
    content[500] ^= 1
    path.write_bytes(content)
    with refuses(path, "corrupt"):
        load(path)


def test_a_bare_array_is_refused(tmp_path, refuses):
    path = tmp_path / "x.npz"
    with path.open("wb") as file:
        np.save(file, IMAGES)
    with refuses(path, "savez"):
        load(path)
