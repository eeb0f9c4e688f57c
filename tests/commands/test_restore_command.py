"""``--mode restore`` end to end: its files and figures, other batches, a stop, and input that cannot work."""

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from PIL import Image
from tiny import CLASSES, error, tiny_command

import main
from data import LevelSpace, load_dataset
from models import Inpainting
from tasks.restoration import available_methods, measure

# three images, two samples each, in three batches
BRIEF = [
    "--config.restore.num_images=3",
    "--config.restore.samples_per_image=2",
    "--config.sampling.batch_size=2",
    "--config.sampling.num_steps=3",
    "--config.restore.method=ddnm",
]


def _restored(workdir: Path, folder: Path, *extra: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    assert main.run(tiny_command("restore", workdir, *BRIEF, f"--output={folder}", *extra)) == 0
    names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    assert names == ["grid.png", "report.json", "restored.npz"]
    with np.load(folder / "restored.npz") as arrays:
        return dict(arrays), json.loads((folder / "report.json").read_text())


def test_the_report_fits_the_samples(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays, report = _restored(tiny_run, tmp_path / "out")
    data = load_dataset("digits", root="-", split="test")
    truth, x0 = data.space.encode(data.stored[:3]), arrays["x0"]
    assert x0.shape == (3, 2, 1, 8, 8) and arrays["samples"].shape == (3, 2, 8, 8, 1)
    np.testing.assert_array_equal(arrays["truth"], LevelSpace(17).pixels(truth))
    np.testing.assert_array_equal(arrays["samples"][1], LevelSpace(17).pixels(torch.from_numpy(x0[1])))
    half = Inpainting((1, 8, 8), hidden="right")
    np.testing.assert_allclose(arrays["y"], measure(half, truth, noise_std=0.05).numpy())
    assert report["rmse"] == pytest.approx(np.sqrt(np.mean((x0 - truth.numpy()[:, None]) ** 2)), rel=1e-5)
    residual = arrays["y"][:, None] - x0[..., :4].reshape(3, 2, 32)
    assert report["chi2"] == pytest.approx(np.mean(residual**2) / 0.05**2, rel=1e-5)
    assert report["nfe"] == 3 and report["step"] == 6 and report["seed"] == 0 and report["sampler"] == "ancestral"
    assert report["operator_options"] == {"hidden": "right"} and report["split"] == "test" and "input" not in report
    table = capsys.readouterr().out
    assert "digits test, 3 images, 2 samples each of step 6 by ddnm with AncestralSampler" in table
    assert f"{report['spread_skill']:.4f} ± {report['spread_skill_stderr']:.4f}" in table
    # truth, observed, mean, std and two samples
    assert Image.open(tmp_path / "out" / "grid.png").size == (6 * 66 + 2, 16 + 3 * 66 + 2)


@pytest.mark.parametrize("name", available_methods())
def test_every_method_restores_images(name: str, tiny_run: Path, tmp_path: Path):
    one = ["--config.restore.num_images=1", "--config.sampling.num_steps=2", f"--config.restore.method={name}"]
    options = {"mmps": "iterations=1", "twisted": "num_particles=2", "repaint": "jump_length=1,num_resamples=2"}
    one += [f"--config.restore.method_options={options[name]}"] if name in options else []
    arrays, report = _restored(tiny_run, tmp_path / "out", *one, "--config.restore.noise_std=0.5")
    assert np.isfinite(arrays["x0"]).all() and report["method"] == name and report["chi2"] > 0
    # bounds of x0 are outermost
    assert report["clip_x0"] and (np.abs(arrays["x0"]) <= 1).all()
    assert ("log_evidence" in arrays) == (name == "twisted")


@pytest.mark.parametrize(
    ("operator", "options", "observed"),
    [("downsample", "factor=4", (1, 2, 2)), ("blur", "std=0.7", (1, 8, 8)), ("inpaint", "hidden=center", (48,))],
)
def test_operators_are_chosen_by_name(
    operator: str, options: str, observed: tuple[int, ...], tiny_run: Path, tmp_path: Path
):
    chosen = [f"--config.restore.operator={operator}", f"--config.restore.operator_options={options}"]
    exactly = ["--config.restore.noise_std=0", "--config.sampling.clip_x0=False"]
    arrays, report = _restored(tiny_run, tmp_path / "out", *chosen, *exactly)
    assert arrays["y"].shape == (3, *observed)
    # so ddnm fits y, and there is no chi2
    assert report["chi2"] is None and report["residual"] < 1e-4


def test_a_sample_is_the_same_at_any_batch_size_and_number_of_images(tiny_run: Path, tmp_path: Path):
    method = ["--config.restore.method=mmps", "--config.restore.method_options=iterations=2"]
    arrays, _ = _restored(tiny_run, tmp_path / "a", *method)
    other = ["--config.sampling.batch_size=5", "--config.restore.num_images=2", "--config.restore.samples_per_image=3"]
    fewer, _ = _restored(tiny_run, tmp_path / "b", *method, *other)
    np.testing.assert_allclose(fewer["x0"][:, :2], arrays["x0"][:2], rtol=0, atol=2e-4)
    assert (fewer["x0"][:, 2] != fewer["x0"][:, 1]).any()
    seeded, _ = _restored(tiny_run, tmp_path / "c", *method, "--config.seed=1")
    assert (seeded["y"] != arrays["y"]).all()


def test_a_stop_leaves_no_report_and_the_same_command_goes_on(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    whole, _ = _restored(tiny_run, tmp_path / "whole")
    from commands.ensembles import restore as module

    draw, calls = module.draw_posterior, []

    def stopped(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return draw(*arguments, **options)

    with monkeypatch.context() as patched:
        patched.setattr(module, "draw_posterior", stopped)
        assert main.run(tiny_command("restore", tiny_run, *BRIEF, f"--output={tmp_path / 'out'}")) == 130
    assert "stopped with 2 of 3 batches kept" in capsys.readouterr().err
    assert not (tmp_path / "out" / "report.json").exists() and not (tmp_path / "out" / "restored.npz").exists()
    resumed, _ = _restored(tiny_run, tmp_path / "out")
    assert "goes on: 2 of 3 batches were drawn before" in capsys.readouterr().err
    for name, array in whole.items():
        np.testing.assert_array_equal(resumed[name], array)


@pytest.mark.slow
def test_two_processes_give_the_samples_of_one(tiny_run: Path, tmp_path: Path, killer: Killer):
    alone, report = _restored(tiny_run, tmp_path / "alone")
    command = tiny_command("restore", tiny_run, *BRIEF, f"--output={tmp_path / 'both'}")
    assert run_together(killer, command, 2) == [0, 0], killer.said()
    with np.load(tmp_path / "both" / "restored.npz") as arrays:
        np.testing.assert_array_equal(arrays["x0"], alone["x0"])
    assert json.loads((tmp_path / "both" / "report.json").read_text()) == report


def _png(path: Path, pixels: np.ndarray) -> str:
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return str(path)


def test_a_photo_is_filled_in_where_its_mask_is_black(tiny_run: Path, tmp_path: Path):
    rng, mask = np.random.default_rng(0), np.zeros((8, 8))
    photo, mask[2:6, 1:] = rng.integers(0, 256, (8, 8)), 255
    given = [f"--input={_png(tmp_path / 'photo.png', photo)}", f"--mask={_png(tmp_path / 'mask.png', mask)}"]
    arrays, report = _restored(tiny_run, tmp_path / "out", *given, "--config.restore.noise_std=0")
    seen = mask > 0
    # the photo as it is, without noise
    np.testing.assert_allclose(arrays["y"][0], photo[seen] / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(arrays["x0"][0, 0, 0][seen], photo[seen] / 127.5 - 1, atol=1e-4)
    assert report["input"].endswith("photo.png") and report["operator_options"]["mask"].endswith("mask.png")
    assert "truth" not in arrays and "rmse" not in report and report["num_images"] == 1
    # a mask of images of a split
    masked, _ = _restored(tiny_run, tmp_path / "split", given[1])
    assert masked["y"].shape == (3, 28) and "truth" in masked


def test_small_photos_are_enlarged(tiny_run: Path, tmp_path: Path):
    rng = np.random.default_rng(0)
    (tmp_path / "photos").mkdir()
    for k in range(2):
        _png(tmp_path / "photos" / f"{k}.png", small := rng.integers(0, 256, (4, 4)))
    down = ["--config.restore.operator=downsample", f"--input={tmp_path / 'photos'}"]
    arrays, report = _restored(tiny_run, tmp_path / "out", *down)
    np.testing.assert_allclose(arrays["y"][1, 0], small / 127.5 - 1, atol=1e-6)
    assert arrays["x0"].shape == (2, 2, 1, 8, 8) and report["num_images"] == 2 and report["coverage_expected"] == 1 / 3


def test_classes_are_those_of_the_images_or_those_asked_for(
    class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    own = [*CLASSES, "--config.sampling.guidance_weight=2"]
    arrays, report = _restored(class_run, tmp_path / "own", *own)
    assert arrays["classes"].tolist() == load_dataset("digits", root="-", split="test").labels[:3].tolist()
    assert report["nfe"] == 6 and report["guidance"]["weight"] == 2
    asked, report = _restored(class_run, tmp_path / "asked", *own, "--config.sampling.classes=3,7")
    assert asked["classes"].tolist() == report["classes"] == [3, 7, 3] and (asked["x0"] != arrays["x0"]).any()
    photo = f"--input={_png(tmp_path / 'photo.png', np.zeros((8, 8)))}"
    message = error(capsys, tiny_command("restore", class_run, *BRIEF, *own, photo))
    assert "the model is told classes, which --input does not have; set sampling.classes=3,7" in message
    of_files, _ = _restored(class_run, tmp_path / "files", *own, photo, "--config.sampling.classes=5")
    assert of_files["classes"].tolist() == [5]
    images = np.zeros((2, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "wrong.npz", images=images, labels=[1, 10])
    message = error(capsys, tiny_command("restore", class_run, *BRIEF, *own, f"--input={tmp_path / 'wrong.npz'}"))
    assert "labels must be in 0 .. 9, got [1, 10]; set sampling.classes" in message


def test_a_classifier_guides(tiny_run: Path, classifier_run: Path, tmp_path: Path):
    guided = [
        f"--config.sampling.classifier={classifier_run}",
        "--config.sampling.classes=3",
        "--config.restore.method=dps",
    ]
    arrays, report = _restored(tiny_run, tmp_path / "out", *guided, "--config.restore.noise_std=1")
    assert report["classes"] == [3, 3, 3] and np.isfinite(arrays["x0"]).all()


@pytest.fixture(scope="module")
def moons(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("moons") / "run"
    assert main.run(tiny_command("train", workdir, config="vp/moons")) == 0
    return workdir


def test_vectors_are_freed_from_noise_and_have_no_pixels(
    moons: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def command(*extra: str) -> list[str]:
        return tiny_command("restore", moons, *BRIEF, f"--output={tmp_path / 'out'}", *extra, config="vp/moons")

    assert main.run(command("--config.restore.operator=identity")) == 0
    with np.load(tmp_path / "out" / "restored.npz") as arrays:
        assert arrays["samples"].shape == (3, 2, 2) and arrays["y"].shape == (3, 2)
    assert not (tmp_path / "out" / "grid.png").exists()
    for extra, message in {
        (): "parts such as hidden=right are of images, got samples [2]; pass a mask",
        ("--config.restore.operator=blur",): "operator blur is of images (C, H, W), got samples [2]",
        ("--mask=mask.png",): "--mask is of images, got a model of vectors; leave it out",
        ("--config.restore.operator=identity", "--input=x.npz"): "is of images, got a model of vectors; leave it out",
    }.items():
        assert message in error(capsys, command(*extra))


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--config.restore.method=mmpz"], "unknown method 'mmpz'; did you mean 'mmps'?"),
        (["--config.restore.method_options=iterations=2"], "unknown option of method 'ddnm': 'iterations'"),
        (["--config.restore.method=dps", "--config.restore.noise_std=0"], "method dps needs noise_std above 0, got 0"),
        (["--config.restore.noise_std=-1"], "config.restore.noise_std must be at least 0, got -1"),
        (
            ["--config.restore.num_images=361"],
            "num_images must be 1 .. 360, the size of the digits test split, got 361",
        ),
        (["--config.restore.split=tset"], "unknown split 'tset'; did you mean 'test'?"),
        (["--config.restore.operator=blurr"], "unknown operator 'blurr'; did you mean 'blur'?"),
        (["--config.restore.operator=gray"], "operator gray is of images of 3 channels, got 1; choose another one"),
        (
            ["--config.restore.operator=downsample", "--config.restore.operator_options=factor=3"],
            "factor must divide images of 8x8, got 3",
        ),
        (["--config.restore.operator_options=hidden=rigt"], "unknown hidden 'rigt'; did you mean 'right'?"),
        (
            ["--config.restore.operator_options=mask=1"],
            "mask is no option in config.restore.operator_options; pass --mask",
        ),
        (["--config.restore.operator=blur", "--mask=mask.png"], "--mask is of restore.operator=inpaint, got blur"),
        (["--mask=nothing.png"], "nothing.png holds no images"),
        (["--input=nothing.png"], "nothing.png holds no images"),
        (["--input=text.png"], "1 of 1 images cannot be read: text.png (not an image)"),
        (["--input=wide.png"], "wide.png: images to fill in must be 1x8x8 (C x H x W), got 1x8x6; resize them"),
        (["--mask=wide.png"], "wide.png: masks must be 1x8x8 (C x H x W), got 1x8x6; resize them"),
        (["--mask=black.png"], "black.png is black throughout, and shows nothing; make white what is seen"),
        (["--mask=white.png", "--config.restore.operator_options=hidden=left"], "either a mask or hidden, got both"),
        (["--mask=masks"], "masks holds 2 images; pass one"),
        (
            ["--config.restore.operator=downsample", "--input=white.png"],
            "what downsample measures must be 1x4x4 (C x H x W), got 1x8x8; resize",
        ),
        (["--config.sampling.precision=bf16"], "takes gradients of the network, in float32 and not compiled"),
        (["--config.sampling.classes=3"], "sampling.classes=3 needs a class-conditional model"),
        (["--config.restore.method=twisted", "--config.sampling.sampler=ddim"], "steps as the sampler ancestral does"),
    ],
)
def test_bad_input_is_one_line(
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    extra: list[str],
    message: str,
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "masks").mkdir()
    for name, pixels in {
        "wide.png": np.zeros((8, 6)),
        "black.png": np.zeros((8, 8)),
        "white.png": np.full((8, 8), 255),
        "masks/a.png": np.full((8, 8), 255),
        "masks/b.png": np.full((8, 8), 255),
    }.items():
        _png(tmp_path / name, pixels)
    assert message in error(capsys, tiny_command("restore", tiny_run, *BRIEF, "--output=out", *extra))
    assert not (tmp_path / "out" / "partial").exists()
