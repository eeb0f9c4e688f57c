import numpy as np
import pytest
import torch

from data import DataError, ImageDataset, LevelSpace
from data.base import fixed_split


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_level_of_every_depth_survives_the_round_trip(dtype):
    for num_levels in range(2, 257):
        levels = torch.arange(num_levels, dtype=torch.uint8)
        x = LevelSpace(num_levels).encode(levels)
        assert x.dtype == torch.float32
        assert x[0] == -1 and x[-1] == 1
        assert torch.equal(LevelSpace(num_levels).decode(x.to(dtype)), levels)


def test_model_space_is_affine_in_the_level():
    levels = torch.arange(17, dtype=torch.uint8)
    torch.testing.assert_close(LevelSpace(17).encode(levels), torch.linspace(-1, 1, 17))


def test_input_images_are_not_changed_in_place():
    levels = torch.tensor([0, 7, 16], dtype=torch.uint8)
    x = LevelSpace(17).encode(levels)
    LevelSpace(17).decode(x)
    assert levels.tolist() == [0, 7, 16]
    assert x.tolist() == LevelSpace(17).encode(levels).tolist()


def test_decoding_takes_the_nearest_level_and_clamps():
    x = torch.tensor([-torch.inf, -3.0, -0.51, -0.49, 0.49, 0.51, 3.0, torch.inf])
    assert LevelSpace(3).decode(x).tolist() == [0, 0, 0, 1, 1, 2, 2, 2]


def test_half_precision_rounds_no_worse_than_its_own_grid():
    x = torch.linspace(-1, 1, 1001).to(torch.bfloat16)
    assert torch.equal(LevelSpace(256).decode(x), LevelSpace(256).decode(x.double()))


def test_conversion_refusals(refuses):
    with refuses("2 NaN", "of 3"):
        LevelSpace(256).decode(torch.tensor([0.0, torch.nan, torch.nan]))
    with refuses("torch.uint8"):
        LevelSpace(256).decode(torch.zeros(3, dtype=torch.uint8))
    with refuses("torch.float32"):
        LevelSpace(256).encode(torch.zeros(3))
    for num_levels in (0, 1, 257):
        with refuses("2 .. 256", num_levels):
            LevelSpace(num_levels).encode(torch.zeros(3, dtype=torch.uint8))


def make(**changes):
    fields = {
        "images": torch.zeros(4, 3, 2, 2, dtype=torch.uint8),
        "labels": torch.tensor([0, 1, 2, 0]),
        "num_levels": 17,
        "num_classes": 3,
        "name": "toy",
        "split": "train",
    }
    return ImageDataset(**(fields | changes))


def test_shape_properties_and_subset():
    images = torch.arange(48, dtype=torch.uint8).reshape(4, 3, 2, 2)
    dataset = make(images=images, num_levels=48)
    assert (len(dataset), dataset.image_shape, dataset.num_dims) == (4, (3, 2, 2), 12)
    first = dataset.subset(3)
    assert torch.equal(first.images, images[:3]) and first.labels.tolist() == [0, 1, 2]
    assert (first.num_levels, first.num_classes, first.name, first.split) == (48, 3, "toy", "train")
    assert first.images.data_ptr() == images.data_ptr()
    described = make(class_names=("a", "b", "c"), split_source="official split").subset(2)
    assert (described.class_names, described.split_source) == (("a", "b", "c"), "official split")


@pytest.mark.parametrize("count", [0, -1, 5])
def test_subset_out_of_range_names_the_size(refuses, count):
    with refuses("1 .. 4", "train", count):
        make().subset(count)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": torch.zeros(4, 3, 2, 2)}, ["torch.float32"]),
        ({"images": torch.zeros(4, 2, 2, dtype=torch.uint8)}, ["[4, 2, 2]"]),
        ({"images": torch.zeros(0, 3, 2, 2, dtype=torch.uint8)}, ["empty"]),
        ({"images": torch.full((4, 3, 2, 2), 17, dtype=torch.uint8)}, ["0 .. 16", "got 17"]),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ["[4]", "[3]"]),
        ({"labels": torch.zeros(4, dtype=torch.int32)}, ["torch.int32"]),
        ({"labels": torch.tensor([0, 1, 2, 3])}, ["0 .. 2", "got 3"]),
        ({"labels": torch.tensor([0, -1, 2, 0])}, ["0 .. 2", "got -1"]),
        ({"num_levels": 257}, ["257"]),
        ({"split": "val"}, ["'val'", "train, test"]),
        ({"class_names": ("a", "b")}, ["3 different names", "got a, b"]),
        ({"class_names": ("a", "b", "a")}, ["3 different names", "got a, b, a"]),
        ({"class_names": ("a", "b", "c", "a")}, ["3 different names", "got a, b, c, a"]),
    ],
)
def test_contradictions_are_refused(refuses, changes, words):
    with refuses(*words):
        make(**changes)


def test_classes_in_another_order_keep_their_images(refuses):
    named = make(class_names=("1", "10", "2"))
    natural = named.with_class_order(("1", "2", "10"))
    assert natural.labels.tolist() == [0, 2, 1, 0] and natural.class_names == ("1", "2", "10")
    assert natural.images is named.images and named.labels.tolist() == [0, 1, 2, 0]
    assert natural.with_class_order(["2", "10", "1"]).labels.tolist() == [2, 1, 0, 2]
    with refuses("has the classes 1, 10, 2, expected 1, 2, 3"):
        named.with_class_order(("1", "2", "3"))
    with refuses("(unnamed)"):
        make().with_class_order(("1", "2", "3"))


@pytest.mark.parametrize("count", [2, 3, 10, 25, 1000])
def test_fixed_split_is_a_partition_with_one_in_ten_for_test(count):
    train, test = fixed_split(count, "train"), fixed_split(count, "test")
    assert sorted([*train, *test]) == list(range(count))
    assert len(test) == max(1, count // 10)
    assert np.all(np.diff(train) > 0) and np.all(np.diff(test) > 0)


def test_fixed_split_never_moves():
    assert fixed_split(20, "test").tolist() == [12, 15]


def test_one_image_cannot_be_split(refuses):
    for split in ("train", "test"):
        with refuses("1 images", "at least 2"):
            fixed_split(1, split)


def test_messages_are_one_printable_line_whatever_the_file_is_called():
    message = str(DataError("bad\nname \udcff; rename it"))
    assert "\n" not in message and message.encode()
