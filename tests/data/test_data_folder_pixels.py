"""Pixels of image files of every mode, depth and size."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from data import load_dataset

RANDOM = np.random.RandomState(0)


def load(root, split="train", **options):
    return load_dataset("folder", root=root, split=split, **options)


def save(path, image, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **options)


def integers(high, dtype):
    values = RANDOM.randint(0, high + 1, (8, 8))
    values[0, 0] = high
    return values.astype(dtype)


@pytest.mark.parametrize("dtype", [np.int32, np.uint16])
@pytest.mark.parametrize(("high", "bits"), [(255, 8), (201, 8), (1023, 10), (4095, 12), (3000, 12), (65535, 16)])
def test_wide_grey_is_read_by_the_depth_that_it_fills(tmp_path, dtype, high, bits):
    values = integers(high, dtype)
    save(tmp_path / "train" / "a.tiff", values)
    if dtype is np.uint16:
        save(tmp_path / "train" / "b.png", values)
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 8, 8)
    for image in dataset.images.numpy():
        assert np.array_equal(image[0], values >> (bits - 8))
    assert f"reach {high:,}: white is taken to be {2**bits - 1:,}" in dataset.notes[0]


def test_the_depth_is_that_of_the_whole_folder(tmp_path):
    bright, dark, byte = integers(4095, np.uint16), integers(100, np.int32), integers(255, np.uint8)
    save(tmp_path / "test" / "bright.png", bright)
    save(tmp_path / "train" / "a.tiff", dark)
    save(tmp_path / "train" / "b.png", byte)
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images.numpy()[:, 0], [dark >> 4, byte])


@pytest.mark.parametrize(("high", "white"), [(1.0, 1), (0.7, 1), (1.00001, 1), (1.01, 1), (1.06, 255), (255.0, 255)])
def test_floating_point_is_read_as_unit_or_byte_range(tmp_path, high, white):
    values = (RANDOM.rand(8, 8) * high).astype(np.float32)
    values[0, 0] = high
    save(tmp_path / "train" / "a.tiff", values)
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images.numpy()[0, 0], np.round(np.minimum(values, white) * (255 / white)))
    cut = ", and what is above is cut off" if high > white else ""
    assert dataset.notes[0].endswith(f"white is taken to be {white}{cut}")


@pytest.mark.parametrize(
    "values", [np.full((8, 8), np.nan), np.full((8, 8), -0.5), np.full((8, 8), 256.0), np.full((8, 8), 65536)]
)
def test_grey_values_of_no_known_range_are_refused(tmp_path, refuses, values):
    path = tmp_path / "train" / "a.tiff"
    save(path, values.astype(np.int32 if values.dtype == np.int64 else np.float32))
    with refuses("1 of 1 images cannot be read", f"{path} (grey values must lie in 0 .. ", ": rescale them)"):
        load(tmp_path)


def test_channels_are_those_of_the_folder(tmp_path):
    grey, colour = integers(255, np.uint8), RANDOM.randint(0, 256, (8, 8, 3)).astype(np.uint8)
    train = tmp_path / "train"
    save(train / "l.png", grey)
    save(train / "p.gif", grey)
    save(train / "palette.png", Image.fromarray(grey).quantize(4))
    save(train / "one.png", grey > 127)
    save(train / "la.png", np.dstack([grey, np.full((8, 8), 255, np.uint8)]))
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 8, 8)
    for i in (0, 1, 3):
        assert np.array_equal(dataset.images[i, 0].numpy(), grey), i
    assert load(tmp_path, channels=3).image_shape == (3, 8, 8)
    # one image in colour, and be it of the other split, makes both colour
    save(tmp_path / "test" / "x.png", colour)
    assert load(tmp_path).image_shape == (3, 8, 8)
    assert np.array_equal(load(tmp_path).images[0].numpy(), np.stack([grey] * 3))
    assert np.array_equal(load(tmp_path, "test").images[0].numpy(), colour.transpose(2, 0, 1))


def test_images_as_they_are_must_be_of_one_size(tmp_path, refuses):
    whole = RANDOM.randint(0, 256, (6, 9, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    save(tmp_path / "train" / "a.png", whole)
    save(tmp_path / "train" / "turned.png", np.ascontiguousarray(np.rot90(whole)), exif=exif)
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images.numpy(), np.stack([whole.transpose(2, 0, 1)] * 2))
    save(tmp_path / "train" / "tall.png", np.ascontiguousarray(np.rot90(whole)))
    with refuses("6x9 (2 images), 9x6 (1 images)", "set image_size"):
        load(tmp_path)
    assert load(tmp_path, image_size=4).image_shape == (3, 4, 4)


def transparent_png(colour):
    image = Image.new("RGBA", (2, 2), (*colour, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    return image


def test_hidden_colours_are_not_seen(tmp_path):
    for name, colour in (("a", (0, 0, 0)), ("b", (240, 30, 10))):
        save(tmp_path / "train" / f"{name}.png", transparent_png(colour))
    keyed = Image.new("RGB", (2, 2), (7, 7, 7))
    keyed.putpixel((0, 0), (10, 20, 30))
    save(tmp_path / "train" / "c.png", keyed, transparency=(7, 7, 7))
    palette = keyed.quantize(2)
    save(tmp_path / "train" / "d.png", palette, transparency=palette.getpixel((1, 1)))
    dataset = load(tmp_path)
    for image in dataset.images:
        assert image[:, 0, 0].tolist() == [10, 20, 30] and image[:, 1, 1].tolist() == [255, 255, 255]
    assert dataset.notes == ("images that are transparent in places, shown on white: 4",)


def test_the_transparent_value_of_deep_grey_is_seen_alone(tmp_path):
    values = integers(65535, np.uint16)
    values[1, :3] = 1000, 1001, 999  # all three are 3 in 8 bits
    save(tmp_path / "train" / "a.png", values, transparency=1000)
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images[0, 0].numpy(), np.where(values == 1000, 255, values >> 8))
    assert dataset.notes[-1] == "images that are transparent in places, shown on white: 1"


def test_half_transparent_grey_is_mixed_with_white(tmp_path):
    grey, alpha = integers(255, np.uint8), integers(255, np.uint8)
    save(tmp_path / "train" / "a.png", np.dstack([grey, alpha]))
    found = load(tmp_path).images[0, 0].numpy()
    assert np.abs(found - (grey * (alpha / 255) + 255 - alpha)).max() <= 1
    # nor does resizing mix hidden colours in
    save(tmp_path / "train" / "a.png", np.dstack([grey, grey, grey, np.zeros((8, 8), np.uint8)]))
    assert load(tmp_path, image_size=2).images.unique().tolist() == [255]


def test_a_large_text_in_a_png_is_no_damage(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_itxt("workflow", "many words " * 400_000, zip=True)
    save(tmp_path / "train" / "a.png", np.full((2, 2), 77, np.uint8), pnginfo=text)
    assert load(tmp_path).images.unique().tolist() == [77]


def deep_png(values):
    """A PNG of 16-bit colours, which Pillow cannot write."""
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">2I5B", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = (struct.pack(">I", len(c)) + kind + c + struct.pack(">I", zlib.crc32(kind + c)) for kind, c in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_what_is_lost_of_a_file_is_said(tmp_path):
    train = tmp_path / "train"
    values = RANDOM.randint(0, 65536, (8, 8, 3))
    train.mkdir()
    (train / "deep.png").write_bytes(deep_png(values))
    frames = [Image.new("L", (8, 8), level) for level in (10, 20, 30)]
    for suffix in (".gif", ".tiff", ".png"):
        frames[0].save(train / f"frames{suffix}", save_all=True, append_images=frames[1:])
    dataset = load(tmp_path)
    assert np.array_equal(dataset.images[0].numpy(), (values >> 8).transpose(2, 0, 1))
    assert dataset.images[1:].unique().tolist() == [10]
    assert dataset.notes == (
        "files of several frames, of which the first is taken: 3",
        "colour images of 16 bits a channel, of which the upper 8 are taken: 1",
    )


def test_all_broken_files_are_named_at_once(tmp_path, refuses):
    train = tmp_path / "train"
    for i in range(40):
        save(train / f"{i:02d}.png", integers(255, np.uint8))
    (train / "03.png").write_bytes(b"")
    (train / "17.png").write_bytes((train / "18.png").read_bytes()[:60])
    (train / "39.jpeg").write_text("<html>")
    with refuses("3 of 41 images", train / "03.png", train / "17.png", train / "39.jpeg", "replace or remove"):
        load(tmp_path, image_size=4)
    with refuses(train / "03.png", train / "17.png", train / "39.jpeg"):
        load(tmp_path)


@pytest.mark.parametrize("image_size", [None, 4])
def test_what_is_broken_in_the_test_split_is_named_before_training(tmp_path, refuses, image_size):
    for name in ("train/a.png", "train/b.png", "test/a.png", "test/b.png"):
        save(tmp_path / name, integers(255, np.uint8))
    save(tmp_path / "test" / "c.png", transparent_png((0, 0, 0)).resize((8, 8)))
    dataset = load(tmp_path, image_size=image_size)
    assert len(dataset) == 2 and dataset.notes == ()
    whole = (tmp_path / "test" / "b.png").read_bytes()
    (tmp_path / "train" / "b.png").write_bytes(b"")
    (tmp_path / "test" / "b.png").write_bytes(whole[:60])
    with refuses("2 of 5 images", tmp_path / "train" / "b.png", tmp_path / "test" / "b.png"):
        load(tmp_path, image_size=image_size)


def test_a_folder_without_splits_is_checked_whole(tmp_path, refuses):
    for i in range(10):
        save(tmp_path / f"{i}.png", np.full((2, 2), i, np.uint8))
    broken = tmp_path / f"{load(tmp_path, 'test').images[0, 0, 0, 0]}.png"
    broken.write_bytes(b"")
    with refuses("1 of 10 images", broken):
        load(tmp_path)


def test_images_as_they_are_must_be_of_one_size_in_both_splits(tmp_path, refuses):
    save(tmp_path / "train" / "a.png", np.zeros((6, 9), np.uint8))
    save(tmp_path / "test" / "a.png", np.zeros((5, 9), np.uint8))
    with refuses("6x9 (1 images), 5x9 (1 images)", "set image_size"):
        load(tmp_path)
