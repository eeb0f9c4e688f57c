import gzip
import hashlib
import os
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from data import load_dataset

RANDOM = np.random.RandomState(0)
IMAGES = RANDOM.randint(0, 256, (7, 28, 28)).astype(np.uint8)
LABELS = np.array([3, 1, 4, 1, 5, 9, 2], np.uint8)
IMAGE_BYTES = struct.pack(">4I", 2051, 7, 28, 28) + IMAGES.tobytes()
LABEL_BYTES = struct.pack(">2I", 2049, 7) + LABELS.tobytes()
NAMES = ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def write(folder, *, images=IMAGE_BYTES, labels=LABEL_BYTES, compress=False, names=NAMES):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in zip(names, (images, labels), strict=True):
        if compress:
            (folder / f"{name}.gz").write_bytes(gzip.compress(content))
        else:
            (folder / name).write_bytes(content)


def load(root, split="test"):
    return load_dataset("mnist", root=root, split=split)


@pytest.mark.parametrize("folder", ["", "mnist", "MNIST", "MNIST/raw", "raw"])
@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("names", [NAMES, tuple(name.replace("-idx", ".idx") for name in NAMES)])
def test_official_files_are_read_exactly_in_every_layout(tmp_path, folder, compress, names):
    write(tmp_path / folder, compress=compress, names=names)
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images.numpy(), IMAGES[:, None])
    assert dataset.labels.tolist() == LABELS.tolist()
    assert (dataset.num_levels, dataset.num_classes, dataset.split) == (256, 10, "test")
    assert (dataset.class_names, dataset.split_source) == (tuple("0123456789"), "official split")


def test_the_other_splits_files_are_not_opened(tmp_path):
    write(tmp_path)
    for name in ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"):
        os.mkfifo(tmp_path / name)  # opening one would block for ever
    assert len(load(tmp_path)) == 7


def test_images_and_labels_come_from_one_folder(tmp_path, refuses):
    write(tmp_path / "mnist")
    (tmp_path / NAMES[0]).write_bytes(struct.pack(">4I", 2051, 1, 28, 28) + bytes(784))
    assert len(load(tmp_path)) == 7
    (tmp_path / "mnist" / NAMES[0]).unlink()
    with refuses("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz", tmp_path / "mnist"):
        load(tmp_path)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize(
    ("images", "words"),
    [
        (IMAGE_BYTES[:1000], ["is truncated: expected 5504 bytes, got 1000"]),
        (IMAGE_BYTES[:9], ["is truncated", "16 bytes", "got 9"]),
        (b"", ["is truncated", "got 0"]),
        (IMAGE_BYTES + b"\0", ["too long", "5504"]),
        (LABEL_BYTES + bytes(20), ["expected magic 2051, got 2049"]),
        (struct.pack(">4I", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1) + bytes(99), ["is truncated"]),
        (struct.pack(">4I", 2051, 0, 28, 28), ["no data"]),
        (struct.pack(">4I", 2051, 6, 28, 28) + IMAGES[:6].tobytes(), ["7 labels, expected 6", NAMES[1]]),
    ],
)
def test_wrong_files_are_named_with_what_was_expected(tmp_path, refuses, compress, images, words):
    write(tmp_path, images=images, compress=compress)
    with refuses(NAMES[0], *words):
        load(tmp_path)


def test_a_label_above_nine_is_refused(tmp_path, refuses):
    write(tmp_path, labels=LABEL_BYTES[:-1] + b"\x0a")
    with refuses(NAMES[1], "label 10"):
        load(tmp_path)


@pytest.mark.parametrize("keep", [1, 5, 200, -1, -5])
def test_a_truncated_gzip_is_one_line(tmp_path, refuses, keep):
    write(tmp_path, compress=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(path.read_bytes()[:keep])
    with refuses(path, "truncated"):
        load(tmp_path)


def test_a_damaged_gzip_is_refused_even_if_it_still_inflates(tmp_path, refuses):
    write(tmp_path, compress=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    content = bytearray(gzip.compress(IMAGE_BYTES, compresslevel=0))
    content[3000] ^= 1  # stored, so only the checksum can tell
    path.write_bytes(content)
    with refuses(path, "corrupt"):
        load(tmp_path)


def test_a_file_that_is_not_gzip_is_refused(tmp_path, refuses):
    write(tmp_path, compress=True)
    path = tmp_path / f"{NAMES[0]}.gz"
    path.write_bytes(b"<html>404 Not Found</html>")
    with refuses(path, "corrupt"):
        load(tmp_path)


def test_real_mnist_is_the_published_one(real_data):
    dataset = load(real_data)
    assert len(dataset) == 10000 and dataset.image_shape == (1, 28, 28)
    assert dataset.labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    # Class counts of the test set as published with the data set.
    assert torch.bincount(dataset.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


def test_real_test_split_loads_without_the_training_files(real_data, tmp_path):
    for path in Path(real_data, "mnist").glob("t10k-*"):
        shutil.copyfile(path, tmp_path / path.name)
    alone, beside = load(tmp_path), load(real_data)
    digests = [hashlib.sha256(part.images.numpy().tobytes()).hexdigest() for part in (alone, beside)]
    assert digests[0] == digests[1]
    assert len(load(real_data, "train")) == 60000
