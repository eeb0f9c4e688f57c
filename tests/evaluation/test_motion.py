"""Motion and identity, read from the pixels of moving digits."""

import numpy as np
import pytest
import torch

from benchmarks import motion
from data import load_dataset
from evaluation.motion import centred, path_residual, tracks_of, train_digit_reader

ROOM = {"room": 8, "fastest": 2}


@pytest.fixture(scope="module")
def clips():
    dataset = load_dataset("moving_digits", root=".", split="test", options={"num_clips": 1000})
    return dataset.images[:, 0], dataset.labels


def test_the_centre_of_mass_is_that_of_the_definition(clips):
    clip = clips[0][3].double()
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    expected = [[(frame * one).sum() / frame.sum() for one in (rows, columns)] for frame in clip]
    torch.testing.assert_close(tracks_of(clips[0])[3], torch.tensor(expected, dtype=torch.float64))


def test_true_clips_lie_on_a_way_and_others_do_not(clips):
    tracks = tracks_of(clips[0])
    assert float(path_residual(tracks, **ROOM).max()) < 1e-6
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(tracks.shape, generator=generator, dtype=torch.float64)
    # noise of one pixel a coordinate leaves about 1.4 less the four numbers that are fitted
    found = path_residual(tracks + noise, **ROOM)
    assert 0.9 < float(found.mean()) < 1.4
    shuffled = tracks[:, torch.randperm(8, generator=generator)]
    assert float(path_residual(shuffled, **ROOM).median()) > 1.0
    black = clips[0].clone()
    black[0, 2] = 0
    assert bool(path_residual(tracks_of(black), **ROOM).isnan()[0])


def test_frames_that_differ_by_a_shift_are_centred_alike(clips):
    crops = centred(clips[0], 8)
    assert torch.equal(crops, crops[:, :1].expand_as(crops)) and bool((crops.flatten(2).sum(2) > 0).all())
    single = torch.zeros(1, 2, 16, 16, dtype=torch.uint8)
    single[0, 0, 0, 15] = 9
    crop = centred(single, 8)[0]
    assert int(crop[0, 4, 4]) == 9 and int(crop.sum()) == 9


def test_a_digit_that_moves_is_one_and_a_cut_makes_two(clips):
    digits = [load_dataset("digits", root=".", split=split) for split in ("train", "test")]
    reader = train_digit_reader(*digits)
    assert reader.accuracy > 0.93
    frames, labels = clips
    assert bool(reader.keeps_identity(frames).all())
    found = reader.read(frames)
    assert float((found[:, 0] == labels).double().mean()) > 0.9
    cut = torch.cat((frames[:, :4], frames.roll(1, 0)[:, 4:]), 1)
    same = (found[:, 0] == found.roll(1, 0)[:, 0]).double().mean()
    assert float(reader.keeps_identity(cut).double().mean()) == float(same)
    assert not bool(reader.keeps_identity(torch.zeros_like(frames[:1])).any())


def test_figures_of_clips_that_a_run_drew(clips, tmp_path):
    """True clips, after a pass through the file of samples: one digit each, on its way; halves of two are not."""
    whole = load_dataset("moving_digits", root=".", split="test", options={"num_clips": 1000})
    after = whole.after(2)
    np.savez(tmp_path / "samples.npz", arr_0=after.space.pixels(after.space.encode(after.images)))
    drawn = motion.drawn_clips(tmp_path, after, after.num_levels)
    assert torch.equal(drawn, whole.images[:, 0])
    reader = train_digit_reader(*[load_dataset("digits", root=".", split=split) for split in ("train", "test")])
    assert motion.motion_figures(drawn, reader, fastest=2) == {
        "identity": 1, "black": 0, "residual": pytest.approx(0, abs=1e-6), "half_pixel": 1,
    }  # fmt: skip
    drawn[0, 3] = 0
    cut = torch.cat((drawn[:, :4], drawn.roll(1, 0)[:, 4:]), 1)
    found = motion.motion_figures(cut, reader, fastest=2)
    assert found["identity"] < 0.3 and found["residual"] > 0.5 and found["half_pixel"] < 0.5
    assert found["black"] == 1 / len(drawn)
    with pytest.raises(ValueError, match="run --mode sample first"):
        motion.drawn_clips(tmp_path / "none", after, after.num_levels)
