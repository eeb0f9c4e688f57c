"""Clips: moving digits and their physics, folders of GIFs and of frames, and frames that are given."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data import DataError, ImageKind, VideoDataset, load_dataset, read_given_images
from data.sources.moving_digits import positions, velocities

MOVING = {"root": ".", "split": "train", "options": {"num_clips": 60}}


def moving(**options):
    return load_dataset("moving_digits", **MOVING | {"options": MOVING["options"] | options})


def test_a_clip_depends_on_split_and_index_alone():
    few, many = moving(), moving(num_clips=80)
    assert isinstance(few, VideoDataset) and few.image_shape == (1, 8, 16, 16) and few.num_dims == 2048
    assert torch.equal(few.images, many.images[:60]) and torch.equal(few.labels, many.labels[:60])
    longer = moving(num_frames=10)
    assert torch.equal(longer.images[:, :, :8], few.images)
    assert not torch.equal(load_dataset("moving_digits", **MOVING | {"split": "test"}).images[0], few.images[0])


def cut_to_ink(image):
    return image[(image > 0).any(1)][:, (image > 0).any(0)]


def test_each_frame_is_the_digit_at_its_place():
    dataset, digits = moving(), load_dataset("digits", root=".", split="train")
    drawn = set()
    for clip, label in zip(dataset.images[:, 0], dataset.labels, strict=True):
        # cut to its ink, every frame shows the same, which is that of a digit of this class
        cuts = [cut_to_ink(frame) for frame in clip]
        assert all(torch.equal(cut, cuts[0]) for cut in cuts)
        of_class = digits.images[digits.labels == label][:, 0]
        assert any(torch.equal(cut_to_ink(one), cuts[0]) for one in of_class)
        drawn.add(int(label))
    assert len(drawn) == 10


def test_walls_reflect_and_reverse_the_way():
    starts, speeds = np.array([[7, 0], [1, 8]]), np.array([[2, -1], [-2, 0]])
    found = positions(starts, speeds, 5, 8)
    np.testing.assert_array_equal(found[0], [[7, 0], [7, 1], [5, 2], [3, 3], [1, 4]])
    np.testing.assert_array_equal(found[1], [[1, 8], [1, 8], [3, 8], [5, 8], [7, 8]])
    # the way back is the same, run backwards
    free = positions(np.array([3, 5]), np.array([2, 1]), 30, 8)
    np.testing.assert_array_equal(positions(free[-1], free[-2] - free[-1], 30, 8), free[::-1])
    assert np.abs(np.diff(free, axis=0)).max() <= 2


def test_all_velocities_but_none_are_as_likely():
    found = velocities((np.arange(2400) + 0.5) / 2400, 2)
    pairs, counts = np.unique(found, axis=0, return_counts=True)
    assert len(pairs) == 24 and (counts == 100).all() and (pairs != 0).any(1).all() and np.abs(pairs).max() == 2


def test_given_frames_lie_beside_the_others():
    whole = moving()
    after = whole.after(2)
    assert after.image_shape == (1, 6, 16, 16) and after.num_dims == 6 * 256
    assert (after.kind.paired_channels, after.kind.paired_levels, after.kind.paired_frames) == (1, 17, 2)
    assert torch.equal(torch.cat((after.paired, after.images), 2), whole.images)
    assert torch.equal(after.subset(5).paired, after.paired[:5])
    for number in (8, 9):
        with pytest.raises(DataError, match=rf"8 frames of 16x16, got data.given_frames={number}; give 1 to 7"):
            whole.after(number)
    frames = whole.as_frames()
    assert frames.image_shape == (1, 16, 16) and torch.equal(frames.images[8 * 3 + 5], whole.images[3, :, 5])
    assert torch.equal(frames.labels[::8], whole.labels)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"num_frames": 1}, "num_frames must be a whole number, at least 2, got 1"),
        ({"side": 9}, "side must be a whole number, at least 10, got 9"),
        ({"num_clips": 2.5}, "num_clips must be a whole number, at least 20, got 2.5"),
        ({"base": "digit"}, "base"),
    ],
)
def test_impossible_options_are_refused(option, message):
    with pytest.raises(DataError, match=message):
        moving(**option)


def film(path: Path, frames: np.ndarray) -> None:
    """Write frames, uint8 [F, H, W], as a GIF, or as a folder of PNGs named 1 to F."""
    first, *others = map(Image.fromarray, frames)
    if path.suffix:
        first.save(path, save_all=True, append_images=others, duration=50, disposal=2)
        return
    path.mkdir()
    for number, frame in enumerate((first, *others), 1):
        frame.save(path / f"{number}.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(12):
        frames = np.random.RandomState(k).randint(0, 256, (11, 6, 4)).astype(np.uint8)
        film(tmp_path / (f"{k}.gif" if k % 2 else str(k)), frames)
    return tmp_path


def load(folder: Path, split: str = "train", **options):
    return load_dataset("clips", root=folder, split=split, options=options)


def test_gifs_and_folders_of_frames_are_clips_in_the_order_of_their_names(folder: Path):
    splits = {split: load(folder, split) for split in ("train", "test")}
    assert splits["train"].image_shape == (1, 11, 6, 4) and len(splits["test"]) == 1
    for dataset in splits.values():
        for clip, name in zip(dataset.images[:, 0], dataset.sample_names, strict=True):
            seed = int(name.removesuffix(".gif"))
            # frame 10 comes after 9, and 256 greys pass through a GIF's palette
            expected = np.random.RandomState(seed).randint(0, 256, (11, 6, 4))
            np.testing.assert_array_equal(clip, expected)
    assert torch.equal(load(folder, num_frames=3).images, splits["train"].images[:, :, :3])


def test_folders_of_splits_are_splits(tmp_path: Path):
    for split, number in (("train", 3), ("test", 2)):
        (tmp_path / split).mkdir()
        for k in range(number):
            film(
                tmp_path / split / f"{k}.gif",
                np.full((2, 4, 4), 10 * k, np.uint8) + np.arange(2)[:, None, None].astype(np.uint8),
            )
    assert len(load(tmp_path)) == 3 and load(tmp_path, "test").other_split_size == 3


def test_bad_clips_are_refused_in_one_line(folder: Path):
    whole = (folder / "1.gif").read_bytes()
    (folder / "1.gif").write_bytes(whole[: len(whole) // 2])
    (folder / "3.gif").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"2 of 11 clips cannot be used: .*1.gif \(.*3.gif \(not an image\); replace"):
        load(folder)
    for name in ("1.gif", "3.gif"):
        (folder / name).unlink()
    film(folder / "20.gif", np.random.RandomState(0).randint(0, 256, (5, 6, 4)).astype(np.uint8))
    with pytest.raises(
        DataError, match=r"of one length, got 2: 11 \(\d+ clips\), 5 \(1 clips\); set data.options=num_f"
    ):
        load(folder)
    with pytest.raises(DataError, match=r"20.gif \(5 frames of 7\)"):
        load(folder, num_frames=7)
    (folder / "20.gif").unlink()
    film(folder / "21", np.zeros((11, 5, 5), np.uint8))
    with pytest.raises(DataError, match=r"of one size, got 2: 6x4 \(\d+ clips\), 5x5 \(1 clips\); set data.image_size"):
        load(folder)
    Image.new("L", (3, 3)).save(folder / "21" / "4.png")
    with pytest.raises(DataError, match=r"21 \(frames of 3x3 and 5x5\)"):
        load(folder)
    assert load_dataset("clips", root=folder, split="train", image_size=4).image_shape == (1, 11, 4, 4)
    with pytest.raises(DataError, match="no clips in"):
        load(folder / "21")


def test_clips_pass_through_an_npz_file(tmp_path: Path):
    dataset = moving()
    np.savez(tmp_path / "x.npz", images=dataset.images.movedim(1, -1).numpy(), num_levels=17, labels=dataset.labels)
    found = [load_dataset("npz", root=tmp_path / "x.npz", split=split) for split in ("train", "test")]
    assert all(isinstance(one, VideoDataset) for one in found) and [len(one) for one in found] == [54, 6]
    assert found[0].kind.image_shape == dataset.kind.image_shape
    order = np.random.RandomState(0).permutation(60)
    assert torch.equal(found[1].images, dataset.images[np.sort(order[54:])])


def test_given_frames_are_read_from_gifs_folders_and_npz_files(folder: Path, tmp_path: Path):
    kind = ImageKind((1, 3, 6, 4), 256)
    expected = [np.random.RandomState(seed).randint(0, 256, (11, 6, 4))[:3] for seed in (0, 1)]
    for name, seed in (("1.gif", 1), ("0", 0)):
        np.testing.assert_array_equal(read_given_images(folder / name, kind)[0][0, 0], expected[seed])
    np.testing.assert_array_equal(read_given_images(folder, kind)[0][:2, 0], expected)
    np.savez(tmp_path / "x.npz", images=np.stack(expected)[..., None].astype(np.uint8))
    np.testing.assert_array_equal(read_given_images(tmp_path / "x.npz", kind)[0][:, 0], expected)
    with pytest.raises(DataError, match=r"must be 1x3x6x5 \(C x F x H x W\), got 1x3x6x4; resize them"):
        read_given_images(folder / "1.gif", ImageKind((1, 3, 6, 5), 256))
    with pytest.raises(DataError, match=r"1.gif \(11 frames of 12\)"):
        read_given_images(folder / "1.gif", ImageKind((1, 12, 6, 4), 256))
    with pytest.raises(DataError, match="holds no clips"):
        read_given_images(folder / "none", kind)


def test_two_frames_say_all_others_but_where_a_wall_lies_between():
    room, pairs = 8, [(y, x) for y in range(-2, 3) for x in range(-2, 3) if (y, x) != (0, 0)]
    starts = np.stack(np.meshgrid(range(9), range(9), range(24), indexing="ij"), -1).reshape(-1, 3)
    whole = positions(starts[:, :2], np.array(pairs)[starts[:, 2]], 8, room)
    firsts, others = {}, {}
    for way in whole:
        first = way[:2].tobytes()
        firsts[first] = firsts.get(first, 0) + 1
        way = first, way[2:].tobytes()
        others[way] = others.get(way, 0) + 1
    counts = np.array([(count, firsts[first]) for (first, _), count in others.items()])
    entropy = float((counts[:, 0] / len(whole)) @ np.log2(counts[:, 1] / counts[:, 0]))
    # bits a clip, as docs/video.md says
    assert entropy == pytest.approx(0.1497, abs=1e-4)
