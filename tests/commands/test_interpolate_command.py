"""``--mode interpolate`` end to end: its files and figures, other batches, and input that cannot work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, error, tiny_command

import main
from data import LevelSpace, load_dataset

# two pairs, three stops
BRIEF = [
    "--config.interpolate.images=0,3,5,1",
    "--config.interpolate.weights=0.5",
    "--config.sampling.sampler=ddim",
    "--config.sampling.num_steps=4",
]
FLOW = ["--config.sampling.sampler=probability_flow", "--config.sampling.options=solver=heun"]
Q = "--config.interpolate.latents=q"


def _run(workdir: Path, folder: Path, *extra: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    assert main.run(tiny_command("interpolate", workdir, *BRIEF, f"--output={folder}", *extra)) == 0
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["grid.png", "interpolated.npz", "report.json"]
    with np.load(folder / "interpolated.npz") as arrays:
        return dict(arrays), json.loads((folder / "report.json").read_text())


def test_the_report_is_of_the_files(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays, report = _run(tiny_run, tmp_path / "out", Q, "--config.interpolate.times=0.5,0.2")
    data = load_dataset("digits", root="-", split="test")
    ends = data.space.encode(data.stored[[0, 3, 5, 1]]).view(2, 2, 1, 8, 8)
    np.testing.assert_array_equal(arrays["ends"][1], LevelSpace(17).pixels(ends[1]))
    assert arrays["x0"].shape == (2, 2, 3, 1, 8, 8) and arrays["samples"].shape == (2, 2, 3, 8, 8, 1)
    np.testing.assert_array_equal(arrays["samples"][1, 0], LevelSpace(17).pixels(torch.from_numpy(arrays["x0"][1, 0])))
    errors = arrays["x0"][:, :, [0, 2]] - ends.numpy()
    np.testing.assert_allclose(report["round_trip_rmse"], np.sqrt(np.mean(errors**2, (1, 2, 3, 4, 5))), rtol=1e-5)
    squares = np.mean(arrays["latents"].astype(np.float64) ** 2, (1, 3, 4, 5))
    np.testing.assert_allclose(report["latents_mean_square"], squares)
    # of q, by one noise for both ends: a lerp of the images with the noise of q
    latents = arrays["latents"].astype(np.float64)
    np.testing.assert_allclose(latents[:, :, 1], (latents[:, :, 0] + latents[:, :, 2]) / 2, atol=1e-6)
    assert report["q_mean_square"][0] == pytest.approx(squares[0, [0, 2]].mean(), rel=0.3)
    assert report["stops"] == [0, 0.5, 1] and report["times"] == [0.5, 0.2] and report["images"] == [0, 3, 5, 1]
    assert report["way"] == "lerp" and report["split"] == "test" and report["sampler"] == "ddim"
    # a bound of x0 is no matter to q
    assert report["clip_x0"] and report["nfe"][0] > report["nfe"][1]
    assert "2 pairs of step 6, q latents by lerp, ddim" in capsys.readouterr().out
    # a block of two rows a time, each under a line of names
    assert Image.open(tmp_path / "out" / "grid.png").size == (5 * 66 + 2, 2 * (2 * 66 + 2 + 16))


def test_the_flow_brings_the_ends_back_and_more_steps_bring_them_nearer(tiny_run: Path, tmp_path: Path):
    errors = []
    for num_steps in (4, 8):
        steps = [f"--config.sampling.num_steps={num_steps}", "--config.sampling.grid=log_snr"]
        arrays, report = _run(tiny_run, tmp_path / str(num_steps), *FLOW, *steps)
        errors.append(report["round_trip_rmse"][0])
        assert report["way"] == "slerp" and report["times"] == [1.0] and not report["clip_x0"]
    norms = np.linalg.norm(arrays["latents"].reshape(2, 3, -1), axis=-1)
    assert (norms[:, 1] > 0.99 * norms[:, [0, 2]].min(1)).all()
    assert errors[1] < errors[0]


@pytest.mark.parametrize("latents", [[Q, "--config.sampling.sampler=ancestral"], FLOW])
def test_a_pair_is_the_same_at_any_batch_size_and_number_of_pairs(latents: list[str], tiny_run: Path, tmp_path: Path):
    arrays, _ = _run(tiny_run, tmp_path / "a", *latents)
    other = ["--config.sampling.batch_size=64", "--config.interpolate.images=0,3"]
    fewer, _ = _run(tiny_run, tmp_path / "b", *latents, *other, "--config.interpolate.weights=0.2,0.5")
    np.testing.assert_allclose(fewer["x0"][:, 0, [0, 2, 3]], arrays["x0"][:, 0], rtol=0, atol=2e-4)
    if Q in latents:
        seeded, _ = _run(tiny_run, tmp_path / "c", *latents, "--config.seed=1")
        assert (seeded["latents"] != arrays["latents"]).all()


def test_images_of_files_are_taken(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    rng, folder = np.random.default_rng(0), tmp_path / "photos"
    folder.mkdir()
    photos = rng.integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for name, photo in zip("ab", photos, strict=True):
        Image.fromarray(photo).save(folder / f"{name}.png")
    given = [f"--input={folder}", "--config.interpolate.images=0,1", Q, "--config.interpolate.times=0.3"]
    arrays, report = _run(tiny_run, tmp_path / "out", *given)
    assert report["input"] == str(folder) and "split" not in report
    assert np.abs(arrays["ends"][0, :, ..., 0].astype(float) - photos).max() <= 8  # half of the 17 grey levels
    command = tiny_command("interpolate", tiny_run, *BRIEF, f"--output={tmp_path / 'no'}")
    Image.fromarray(photos[0][:6]).save(tmp_path / "small.png")
    (tmp_path / "broken.png").write_text("no image")
    for path, said in {
        "small.png": "images to interpolate must be 1x8x8 (C x H x W), got 1x6x8; resize them",
        "broken.png": "broken.png",
        "nowhere.png": "holds no images",
    }.items():
        assert said in error(capsys, [*command, f"--input={tmp_path / path}"])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("weights=0.5,1.5", "config.interpolate.weights must lie in [0, 1], got (0.5, 1.5)"),
        ("times=0", "config.interpolate.times must lie in (0, 1], got (0.0,); 1 is noise alone"),
        ("times=1.2", "config.interpolate.times must lie in (0, 1]"),
        ("way=slrp", "unknown way 'slrp'; did you mean 'slerp'?"),
        ("latents=flaw", "unknown latents 'flaw'; did you mean 'flow'?"),
        ("split=tests", "unknown split 'tests'; did you mean 'test'?"),
        ("images=0,1,2", "interpolate.images must be pairs, got 3 numbers"),
        ("images=0,999", "interpolate.images must be in 0 .. 359, the images of test, got 0,999; choose others"),
        ("images=-1,2", "interpolate.images must be in 0 .. 359"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    setting: str, said: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = tiny_command("interpolate", tiny_run, *BRIEF, Q, f"--output={tmp_path / 'out'}")
    assert said in error(capsys, [*command, f"--config.interpolate.{setting}"])
    assert not list((tmp_path / "out").glob("[a-z]*"))


def test_a_class_is_told_of_both_ends_or_chosen(class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    labels = load_dataset("digits", root="-", split="test").labels
    same = (labels == labels[0]).nonzero().flatten().tolist()
    other = int((labels != labels[0]).nonzero()[0])
    brief = [*BRIEF, *CLASSES, Q, "--config.interpolate.times=0.5"]
    command = tiny_command("interpolate", class_run, *brief, f"--output={tmp_path / 'out'}")
    assert f"one class a pair, got {int(labels[0])} and {int(labels[other])}; choose two images of one class" in error(
        capsys, [*command, f"--config.interpolate.images=0,{other}"]
    )
    _, report = _run(class_run, tmp_path / "a", *brief, f"--config.interpolate.images=0,{same[1]}")
    assert report["classes"] == [int(labels[0])]
    _, report = _run(class_run, tmp_path / "b", *brief, "--config.sampling.classes=3,7")
    assert report["classes"] == [3, 7]
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((6, 8, 8, 1), np.uint8))
    assert "the model is told classes, which --input does not have; set sampling.classes=3,7" in error(
        capsys, [*command, f"--input={tmp_path / 'images.npz'}"]
    )
