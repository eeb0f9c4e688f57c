import os
import tarfile

import numpy as np
import pytest
from PIL import Image

from data import load_dataset

RANDOM = np.random.RandomState(0)


def load(root, split="train", image_size=8, **options):
    return load_dataset("folder", root=root, split=split, image_size=image_size, **options)


def pixels(*shape):
    return RANDOM.randint(0, 256, shape).astype(np.uint8)


def save(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return array


def save_grey_levels(root, names):
    """Save constant images, numbered from 1, whose grey level tells which file they are."""
    for level, name in enumerate(names, start=1):
        save(root / name, np.full((8, 8, 3), level, np.uint8))


def levels(dataset):
    return dataset.images[:, 0, 0, 0].tolist()


def test_images_of_the_right_size_keep_their_pixels_in_sorted_order(tmp_path):
    expected = {name: save(tmp_path / "train" / name, pixels(8, 8, 3)) for name in ("b/2.png", "b/10.bmp", "a/x.PNG")}
    dataset = load(tmp_path)
    for image, name in zip(dataset.images, sorted(expected), strict=True):
        assert np.array_equal(image.numpy(), expected[name].transpose(2, 0, 1)), name
    assert dataset.labels.tolist() == [0, 1, 1]
    assert (dataset.num_levels, dataset.num_classes, dataset.image_shape) == (256, 2, (3, 8, 8))


def test_order_is_that_of_whole_relative_paths(tmp_path):
    names = ["train/a-b/1.png", "train/a/2.png", "train/a/c/1.png", "train/a/z.png", "train/b.d/1.png"]
    save_grey_levels(tmp_path, names)
    assert levels(load(tmp_path)) == [1, 2, 3, 4, 5]
    assert load(tmp_path).labels.tolist() == [1, 0, 0, 0, 2]  # as names, 'a' sorts before 'a-b'


def test_splits_share_their_classes(tmp_path, refuses):
    save_grey_levels(tmp_path, ["train/a/1.png", "train/c/1.png"])
    with refuses("'train'", tmp_path / "test"):
        load(tmp_path, "test")
    save_grey_levels(tmp_path, ["test/b/1.png", "test/c/1.png"])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([0, 2], [1, 2])
    assert train.num_classes == test.num_classes == 3


def test_a_folder_without_splits_is_divided_by_a_fixed_permutation(tmp_path):
    save_grey_levels(tmp_path, [f"{'ab'[i // 10]}/{i:02d}.png" for i in range(20)])
    train, test = load(tmp_path), load(tmp_path, "test")
    assert [level - 1 for level in levels(test)] == [12, 15]
    assert sorted(levels(train) + levels(test)) == list(range(1, 21))
    assert levels(train) == sorted(levels(train))
    assert test.labels.tolist() == [1, 1] and test.num_classes == 2


def test_loose_images_are_class_zero(tmp_path):
    save_grey_levels(tmp_path, ["train/1.png", "train/2.png"])
    assert load(tmp_path).labels.tolist() == [0, 0] and load(tmp_path).num_classes == 1
    save_grey_levels(tmp_path, ["train/0/1.png"])
    assert load(tmp_path).labels.tolist() == [1, 0, 0] and load(tmp_path).num_classes == 2


def test_classes_are_named_and_the_origin_of_the_split_is_told(tmp_path):
    save_grey_levels(tmp_path / "split", ["train/b/1.png", "train/a b/1.png", "test/ü/1.png", "test/loose.png"])
    for split in ("train", "test"):
        dataset = load(tmp_path / "split", split)
        assert dataset.class_names == (".", "a b", "b", "ü")
        assert dataset.split_source == "folders train/ and test/"
    save_grey_levels(tmp_path / "whole", [f"cats/{i}.png" for i in range(10)])
    whole = load(tmp_path / "whole", "test")
    assert whole.class_names == ("cats",) and whole.subset(1).class_names == ("cats",)
    assert whole.split_source == "one in ten held out, by a fixed permutation"


def test_hidden_files_and_other_extensions_are_ignored(tmp_path):
    save_grey_levels(tmp_path, ["train/a/1.png", "train/.hidden.png", "train/.git/1.png"])
    for name in ("a/._1.png", "notes.txt", "a/Thumbs.db", "png"):
        (tmp_path / "train" / name).write_text("not an image")
    assert levels(load(tmp_path)) == [1]


def test_links_are_followed_but_loops_end(tmp_path):
    save_grey_levels(tmp_path / "root", ["train/a/1.png"])
    save_grey_levels(tmp_path / "elsewhere", ["unused.png", "2.png"])
    (tmp_path / "elsewhere" / "unused.png").unlink()
    train = tmp_path / "root" / "train"
    (train / "b").symlink_to(tmp_path / "elsewhere")
    (train / "a" / "up").symlink_to(train)
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "elsewhere")
    (train / "self").symlink_to(train / "self")
    assert levels(load(tmp_path / "root")) == [1, 2]
    assert load(tmp_path / "root").labels.tolist() == [0, 1]


@pytest.mark.parametrize("shape", [(40, 24), (24, 40), (17, 31), (9, 8), (3, 5), (1, 200)])
def test_the_shorter_side_is_resized_and_the_centre_cropped(tmp_path, shape):
    height, width = shape
    source = save(tmp_path / "train" / "x.png", pixels(height, width, 3))
    scale = 8 / min(shape)
    new_width, new_height = max(8, round(width * scale)), max(8, round(height * scale))
    left, top = (new_width - 8) // 2, (new_height - 8) // 2
    resized = Image.fromarray(source).resize((new_width, new_height), Image.Resampling.LANCZOS)
    expected = np.asarray(resized)[top : top + 8, left : left + 8].astype(int)
    found = load(tmp_path).images[0].numpy().transpose(1, 2, 0).astype(int)
    assert np.abs(found - expected).max() <= 1


def test_reducing_averages_instead_of_skipping_pixels(tmp_path):
    board = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    save(tmp_path / "train" / "x.png", board)
    found = load(tmp_path).images.float()
    assert (found - 127.5).abs().max() <= 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    upright = pixels(8, 8, 3)
    stored = {  # how the file must lie for a viewer to turn it upright
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    save(tmp_path / "train" / "x.png", np.ascontiguousarray(stored), exif=exif)
    assert np.array_equal(load(tmp_path).images[0].numpy(), upright.transpose(2, 0, 1))


def test_channels_convert(tmp_path):
    grey, colour = save(tmp_path / "train" / "a.png", pixels(8, 8)), save(tmp_path / "train" / "b.png", pixels(8, 8, 3))
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images[0].numpy(), np.stack([grey] * 3))
    dataset = load(tmp_path, channels=1)
    assert dataset.image_shape == (1, 8, 8)
    assert np.array_equal(dataset.images[0, 0].numpy(), grey)
    assert np.array_equal(dataset.images[1, 0].numpy(), np.asarray(Image.fromarray(colour).convert("L")))


def test_modes_other_than_rgb(tmp_path):
    rgba = save(tmp_path / "train" / "a.png", np.dstack([pixels(8, 8, 3), np.full((8, 8), 255, np.uint8)]))
    wide = save(tmp_path / "train" / "b.png", RANDOM.randint(0, 65536, (8, 8)).astype(np.uint16))
    save(tmp_path / "train" / "c.tiff", wide)
    bits = pixels(8, 8) > 127
    save(tmp_path / "train" / "d.png", bits)
    palette = Image.fromarray(pixels(8, 8, 3)).quantize(8)
    palette.save(tmp_path / "train" / "e.gif")
    found = load(tmp_path).images.numpy()
    assert np.array_equal(found[0], rgba[..., :3].transpose(2, 0, 1))
    assert np.array_equal(found[1], np.stack([wide >> 8] * 3))
    assert np.array_equal(found[2], found[1])
    assert np.array_equal(found[3], np.stack([bits * 255] * 3))
    assert np.array_equal(found[4], np.asarray(palette.convert("RGB")).transpose(2, 0, 1))


def test_more_files_than_one_task_holds_keep_their_places(tmp_path):
    save_grey_levels(tmp_path, [f"train/{i:03d}.png" for i in range(100)])
    assert levels(load(tmp_path)) == list(range(1, 101))


def test_unreadable_images_are_named(tmp_path, refuses):
    save_grey_levels(tmp_path, [f"train/a/{i:02d}.png" for i in range(40)])
    path = tmp_path / "train" / "a" / "37.png"
    save(path, pixels(64, 64, 3))
    whole = path.read_bytes()
    for content in (b"", b"<html>", whole[:30], whole[: len(whole) // 2], whole[: len(whole) - 40]):
        path.write_bytes(content)
        with refuses(path, "cannot be read"):
            load(tmp_path)


@pytest.mark.parametrize("suffix", [".jpg", ".gif", ".webp", ".tif", ".bmp"])
def test_truncated_images_of_other_formats_are_named(tmp_path, refuses, suffix):
    path = tmp_path / "train" / f"x{suffix}"
    save(path, pixels(64, 64, 3))
    assert len(load(tmp_path)) == 1
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with refuses(path, "cannot be read"):
        load(tmp_path)


def test_dangling_links_are_named(tmp_path, refuses):
    path = tmp_path / "train" / "x.tiff"
    path.parent.mkdir()
    os.symlink(tmp_path / "gone", path)
    with refuses(path, "FileNotFoundError"):
        load(tmp_path)


def test_wrong_arguments_are_refused(tmp_path, refuses):
    with refuses("image_size", "got 0"):
        load(tmp_path, image_size=0)
    with refuses("channels", "got 2"):
        load(tmp_path, channels=2)


def test_no_images_and_too_few_images_are_refused(tmp_path, refuses):
    with refuses("no images", tmp_path, ".png"):
        load(tmp_path)
    save_grey_levels(tmp_path, ["only.png"])
    with refuses("1 images", "at least 2"):
        load(tmp_path)
    with refuses("not a folder"):
        load(tmp_path / "only.png")
    (tmp_path / "only.png").unlink()
    (tmp_path / "train").mkdir()
    with refuses("no images", tmp_path / "train"):
        load(tmp_path)


def test_a_size_beyond_memory_is_refused(tmp_path, refuses):
    save_grey_levels(tmp_path, ["train/1.png"])
    with refuses("image_size"):
        load(tmp_path, image_size=10**9)


@pytest.mark.slow
def test_real_photographs(real_data, tmp_path):
    with tarfile.open(real_data / "cifar10-jpeg.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    dataset = load(tmp_path / "cifar10-jpeg", "test", image_size=32)
    assert dataset.image_shape == (3, 32, 32) and dataset.num_classes == 10
    assert dataset.labels.bincount().tolist() == [1000] * 10
