"""``--mode segment`` end to end: its files and figures, other batches, a stop, and input that cannot work."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from PIL import Image
from tiny import error, tiny_command

import main
from data import ImageDataset, LevelSpace, load_dataset
from tasks.segmentation import segmentation_figures

CONFIG = "vp/digits_segment"
# three images, two masks each, in three batches
BRIEF = [
    "--config.segment.num_images=3",
    "--config.segment.samples_per_image=2",
    "--config.sampling.batch_size=2",
    "--config.sampling.num_steps=3",
]


@pytest.fixture(scope="module")
def masks_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a moment that draws masks."""
    workdir = tmp_path_factory.mktemp("masks") / "run"
    assert main.run(tiny_command("train", workdir, config=CONFIG)) == 0
    return workdir


def _command(workdir: Path, folder: Path, *extra: str, config: str = CONFIG) -> list[str]:
    return tiny_command("segment", workdir, *BRIEF, f"--output={folder}", *extra, config=config)


def _segmented(workdir: Path, folder: Path, *extra: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    assert main.run(_command(workdir, folder, *extra)) == 0
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["grid.png", "report.json", "segmented.npz"]
    with np.load(folder / "segmented.npz") as arrays:
        return dict(arrays), json.loads((folder / "report.json").read_text())


def test_the_report_fits_the_masks(masks_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays, report = _segmented(masks_run, tmp_path / "out")
    data = load_dataset("lesion_masks", root="-", split="test")
    assert isinstance(data, ImageDataset) and data.paired is not None
    samples = arrays["samples"]
    assert samples.shape == (3, 2, 8, 8) and set(np.unique(samples)) == {0, 1}
    np.testing.assert_array_equal(arrays["truth"], data.images[:3].numpy())
    images = LevelSpace(256).pixels(LevelSpace(17).encode(data.paired[:3]))
    np.testing.assert_array_equal(arrays["images"], images)
    np.testing.assert_allclose(arrays["mean"], samples.mean(1))
    np.testing.assert_allclose(arrays["variance"], samples.var(1, ddof=1))
    found, _ = segmentation_figures(torch.from_numpy(samples).bool(), data.images[:3].bool())
    for name, one in found.items():
        assert report[name] == (one and pytest.approx(one["value"])), name
    assert report["nfe"] == 4 and report["step"] == 6 and report["split"] == "test" and report["annotators"] == 1
    assert report["empty"] == int((data.labels[:3] == 0).sum())
    table = capsys.readouterr().out
    assert "lesion_masks test, 3 images, 2 masks each of step 6 by ancestral" in table
    assert f"{report['dice']:.4f} ± {report['dice_stderr']:.4f}" in table
    # image, truth, mean, std and two samples
    assert Image.open(tmp_path / "out" / "grid.png").size == (6 * 66 + 2, 16 + 3 * 66 + 2)


def test_a_mask_is_the_same_at_any_batch_size_and_number_of_images(masks_run: Path, tmp_path: Path):
    arrays, _ = _segmented(masks_run, tmp_path / "a")
    other = ["--config.sampling.batch_size=5", "--config.segment.num_images=2", "--config.segment.samples_per_image=3"]
    fewer, _ = _segmented(masks_run, tmp_path / "b", *other)
    np.testing.assert_array_equal(fewer["samples"][:, :2], arrays["samples"][:2])
    assert (fewer["samples"][:, 2] != fewer["samples"][:, 1]).any()
    seeded, _ = _segmented(masks_run, tmp_path / "c", "--config.seed=1")
    assert (seeded["samples"] != arrays["samples"]).any()


def test_a_stop_leaves_no_report_and_the_same_command_goes_on(
    masks_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, _ = _segmented(masks_run, tmp_path / "whole")
    from commands.ensembles import segment as module

    draw, calls = module.draw_ensemble, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, "draw_ensemble", stopped)
        assert main.run(_command(masks_run, tmp_path / "out")) == 130
    assert "stopped with 2 of 3 batches kept" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists()
    resumed, _ = _segmented(masks_run, tmp_path / "out")
    assert "goes on: 2 of 3 batches were drawn before" in capsys.readouterr().err
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array)


@pytest.mark.slow
def test_two_processes_give_the_masks_of_one(masks_run: Path, tmp_path: Path, killer: Killer):
    alone, report = _segmented(masks_run, tmp_path / "alone")
    assert run_together(killer, _command(masks_run, tmp_path / "both"), 2) == [0, 0], killer.said()
    with np.load(tmp_path / "both" / "segmented.npz") as arrays:
        np.testing.assert_array_equal(arrays["samples"], alone["samples"])
    assert json.loads((tmp_path / "both" / "report.json").read_text()) == report


def test_images_of_files_are_segmented_without_a_truth(
    masks_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    of_split, _ = _segmented(masks_run, tmp_path / "split")
    (tmp_path / "photos").mkdir()
    for k, photo in enumerate(of_split["images"][..., 0]):
        Image.fromarray(photo).save(tmp_path / "photos" / f"{k}.png")
    arrays, report = _segmented(masks_run, tmp_path / "out", f"--input={tmp_path / 'photos'}")
    np.testing.assert_array_equal(arrays["samples"], of_split["samples"])
    assert report["input"].endswith("photos") and report["num_images"] == 3 and "split" not in report
    assert "truth" not in arrays and "dice" not in report
    table = capsys.readouterr().out.splitlines()
    assert "photos, 3 images, 2 masks each" in table[-2] and "network calls a sample" in table[-1]
    one, _ = _segmented(masks_run, tmp_path / "one", f"--input={tmp_path / 'photos' / '0.png'}")
    np.testing.assert_array_equal(one["samples"], of_split["samples"][:1])


def test_several_annotators_are_all_measured_against(masks_run: Path, tmp_path: Path):
    # the annotators are a part of what a run is trained on
    options = "--config.data.options=annotators=3"
    assert (
        main.run(tiny_command("train", tmp_path / "run", options, "--config.training.num_steps=1", config=CONFIG)) == 0
    )
    arrays, report = _segmented(tmp_path / "run", tmp_path / "out", options)
    assert arrays["truth"].shape == (3, 3, 8, 8) and report["annotators"] == 3


def test_masks_of_arrays_are_their_own_truth(tmp_path: Path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 2, (20, 8, 8)).astype(np.uint8)
    paired = rng.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", images=images, num_levels=2, paired=paired)
    mine = ["--config.data.dataset=npz", f"--config.data.root={tmp_path / 'mine.npz'}"]
    assert main.run(tiny_command("train", tmp_path / "run", *mine, "--config.training.num_steps=1", config=CONFIG)) == 0
    arrays, _ = _segmented(tmp_path / "run", tmp_path / "out", *mine, "--config.segment.num_images=2")
    test = load_dataset("npz", root=tmp_path / "mine.npz", split="test")
    np.testing.assert_array_equal(arrays["truth"], test.stored.numpy())
    assert arrays["images"].shape == (2, 8, 8, 3)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.segment.samples_per_image=1"], "config.segment.samples_per_image must be at least 2, got 1"),
        (["--config.segment.num_images=361"], "num_images must be 1 .. 360, the size of the lesion_masks test split"),
        (["--config.segment.split=tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["--input=nothing.png"], "nothing.png holds no images"),
        (["--input=text.png"], "1 of 1 images cannot be read: text.png (not an image)"),
        (["--input=wide.png"], "wide.png: condition images must be 1x8x8 (C x H x W), got 1x8x6; resize them"),
        (["--config.sampling.classes=1"], "sampling.classes=1 needs a class-conditional model"),
        (["--config.data.options=annotators=2"], "belongs to another config: data.options was '', is 'annotators=2'"),
    ],
)
def test_bad_input_is_one_line(
    masks_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    Image.fromarray(np.zeros((8, 6), np.uint8)).save(tmp_path / "wide.png")
    assert message in error(capsys, _command(masks_run, tmp_path / "out", *extra))
    assert not (tmp_path / "out").exists()


def test_models_of_other_images_and_those_that_see_none_are_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    message = error(capsys, _command(tiny_run, tmp_path / "out", config="vp/digits"))
    assert "needs a model of masks, images of one channel and 2 grey levels, got 1x8x8 of 17; train one" in message
    blind = ["--config.data.condition=()", "--config.training.num_steps=1"]
    assert main.run(tiny_command("train", tmp_path / "run", *blind, config=CONFIG)) == 0
    message = error(capsys, _command(tmp_path / "run", tmp_path / "out", *blind))
    assert "needs a model that is told an image, got data.condition=(); train one with data.condition=paired" in message
