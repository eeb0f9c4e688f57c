"""``--mode edit`` end to end: its files and figures, other batches, tuned weights, and input that cannot work."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import error, last_tensors, tiny_command

import main
from data import LevelSpace, load_dataset
from samplers import Sampler, SampleResult
from samplers.registry import SAMPLERS
from tasks.editing import localization_figures

BRIEF = [
    "--config.edit.num_images=5",
    "--config.sampling.batch_size=6",
    "--config.sampling.num_steps=4",
    "--config.sampling.sampler=ddim",
]
FLOW = [
    "--config.sampling.sampler=probability_flow",
    "--config.sampling.options=solver=heun",
    "--config.sampling.grid=log_snr",
]
LESIONS = [
    "--config.data.dataset=lesions",
    "--config.model.class_conditional=true",
    "--config.model.condition_dropout=0.2",
]
HEALTHY = "--config.sampling.classes=healthy"


@pytest.fixture(scope="module")
def lesions_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("lesions") / "run"
    assert main.run(tiny_command("train", workdir, *LESIONS)) == 0
    return workdir


def _method(name: str, options: str = "") -> list[str]:
    return [f"--config.edit.method={name}", f"--config.edit.method_options={options}"]


def _run(workdir: Path, folder: Path, *extra: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    assert main.run(tiny_command("edit", workdir, *BRIEF, f"--output={folder}", *extra)) == 0
    names = {path.name for path in folder.iterdir() if not path.name.startswith(".")}
    assert names - {"tuned"} == {"grid.png", "edited.npz", "report.json"}
    with np.load(folder / "edited.npz") as arrays:
        return dict(arrays), json.loads((folder / "report.json").read_text())


def _rmse(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)))


def test_the_report_is_of_the_files(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays, report = _run(tiny_run, tmp_path / "out", "--config.edit.noise_ratio=0.7")
    data = load_dataset("digits", root="-", split="test").subset(5)
    x0 = data.space.encode(data.stored).numpy()
    np.testing.assert_array_equal(arrays["originals"], LevelSpace(17).pixels(torch.from_numpy(x0)))
    np.testing.assert_array_equal(arrays["samples"], LevelSpace(17).pixels(torch.from_numpy(arrays["x0"])))
    assert report["rmse"] == pytest.approx(_rmse(arrays["x0"], x0), rel=1e-5)
    squares = np.mean((arrays["x0"].astype(np.float64) - x0) ** 2, (1, 2, 3))
    stderr = squares.std(ddof=1) / np.sqrt(5) / (2 * report["rmse"])
    assert report["rmse_stderr"] == pytest.approx(stderr, rel=1e-5)
    assert report["noise_ratio"] == pytest.approx(0.7) and 0 < report["t"] < 1 and report["method"] == "sdedit"
    assert report["split"] == "test" and report["num_images"] == 5 and report["sampler"] == "ddim"
    # the noise is that of the level asked for: alpha^2 + sigma^2 = 1
    alpha = 1 / np.sqrt(1 + 0.7**2)
    noise = arrays["x_t"] - alpha * x0
    assert noise.std() == pytest.approx(0.7 * alpha, rel=0.15) and "round_trip" not in arrays
    assert "digits test, 5 images edited by step 6, SDEdit()" in capsys.readouterr().out
    assert Image.open(tmp_path / "out" / "grid.png").width == 3 * 66 + 2  # image, noised, edited


def test_an_image_is_the_same_at_any_batch_size_and_number_of_images(tiny_run: Path, tmp_path: Path):
    t = "--config.edit.t=0.4"
    arrays, report = _run(tiny_run, tmp_path / "a", t)
    fewer, _ = _run(tiny_run, tmp_path / "b", t, "--config.edit.num_images=3", "--config.sampling.batch_size=2")
    np.testing.assert_allclose(fewer["x0"], arrays["x0"][:3], rtol=0, atol=2e-4)
    seeded, _ = _run(tiny_run, tmp_path / "c", t, "--config.seed=1")
    assert (seeded["x_t"] != arrays["x_t"]).all() and report["t"] == 0.4


def test_a_flow_brings_an_image_back_under_its_own_class_and_not_under_another(lesions_run: Path, tmp_path: Path):
    invert = [*LESIONS, *FLOW, *_method("invert"), "--config.edit.t=0.5"]
    fine = [*invert, "--config.sampling.num_steps=12", "--config.sampling.classes=lesion,healthy"]
    arrays, report = _run(lesions_run, tmp_path / "a", *fine)
    data = load_dataset("lesions", root="-", split="test").subset(5)
    x0 = data.space.encode(data.stored).numpy()
    assert report["round_trip_rmse"] == pytest.approx(_rmse(arrays["round_trip"], x0), rel=1e-5)
    assert report["round_trip_rmse"] < 0.05 and report["classes"] == [1, 0, 1, 0, 1]
    assert report["source_classes"] == data.labels.tolist() and not report["clip_x0"]
    np.testing.assert_array_equal(arrays["labels"], data.labels)
    # where both classes are one, the two ways down are
    same = data.labels.numpy() == np.array(report["classes"])
    np.testing.assert_allclose(arrays["x0"][same], arrays["round_trip"][same], rtol=0, atol=1e-6)
    assert same.any() and not same.all()
    assert "localization" not in report
    _, report = _run(lesions_run, tmp_path / "b", *invert, HEALTHY, "--config.edit.method_options=own_class=False")
    assert report["source_classes"] == [-1] * 5


def test_maps_are_measured_against_masks(lesions_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    counterfactual = [*LESIONS, *FLOW, *_method("counterfactual"), HEALTHY, "--config.sampling.guidance_weight=2"]
    arrays, report = _run(lesions_run, tmp_path / "a", *counterfactual, "--config.edit.num_images=12")
    data = load_dataset("lesions", root="-", split="test").subset(12)
    assert data.masks is not None
    masks, x0 = data.masks[:, 0], data.space.encode(data.stored)
    np.testing.assert_array_equal(arrays["masks"], masks)
    maps = (x0 - torch.from_numpy(arrays["x0"])).abs().sum(1)
    np.testing.assert_allclose(arrays["maps"], maps, atol=1e-6)
    for name, figure in localization_figures(maps, masks).items():
        assert report["localization"]["change"][name] == pytest.approx(figure, rel=1e-5)
    assert set(report["localization"]) == {"change", "smoothed", "reconstruction", "blur"}
    assert report["lesion_share"] == pytest.approx(float(masks.double().mean()))
    healthy = data.labels == 0
    assert report["healthy_rmse"] == pytest.approx(_rmse(arrays["x0"][healthy], x0[healthy].numpy()), rel=1e-5)
    assert report["noise_ratio"] == pytest.approx(1) and report["source_classes"] == [-1] * 12
    said = capsys.readouterr().out
    assert "AUPRC" in said and "healthy rmse" in said
    assert Image.open(tmp_path / "a" / "grid.png").width == 4 * 66 + 2  # image, edited, map, truth
    # without masks there are maps, and no measures of them
    np.savez(tmp_path / "images.npz", images=np.transpose(data.stored[:3].numpy() * 15, (0, 2, 3, 1)))
    arrays, report = _run(lesions_run, tmp_path / "b", *counterfactual, f"--input={tmp_path / 'images.npz'}")
    assert arrays["maps"].shape == (3, 8, 8) and "masks" not in arrays
    assert "localization" not in report and "healthy_rmse" not in report and "split" not in report


def test_tuned_weights_are_a_run_that_other_modes_load(
    tiny_run: Path, classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    guided = [f"--config.sampling.classifier={classifier_run}", "--config.sampling.classes=3"]
    options = "steps=2,num_updates=2,num_images=4,learning_rate=0.001"
    finetune = [*FLOW, *_method("finetune", options), *guided, "--config.edit.t=0.5"]
    arrays, report = _run(tiny_run, tmp_path / "a", *finetune)
    data = load_dataset("digits", root="-", split="test").subset(5)
    x0 = data.space.encode(data.stored).numpy()
    for name, one in {"rmse": "x0", "before_rmse": "before"}.items():
        assert report[name] == pytest.approx(_rmse(arrays[one], x0), rel=1e-5)
    assert (arrays["x0"] != arrays["before"]).any() and report["method_options"]["steps"] == 2
    for name in ("originals", "before", "edited"):
        assert 0 <= report[f"recognized_{name}"] <= 1
    tuned = tmp_path / "a" / "tuned"
    before, after = last_tensors(tiny_run), last_tensors(tuned)
    moved = [name for name, one in after.items() if name.startswith("ema.") and not torch.equal(one, before[name])]
    assert moved and torch.equal(after[moved[0]], after[moved[0].replace("ema.", "model.", 1)])
    assert main.run(tiny_command("sample", tuned, f"--output={tmp_path / 'samples'}")) == 0
    assert "of step 0 by ancestral" in capsys.readouterr().err
    # a second time, the run is replaced
    _run(tiny_run, tmp_path / "a", *finetune, "--config.seed=0")
    assert len(list((tuned / "checkpoints").glob("step_*"))) == 1
    command = tiny_command("edit", tiny_run, *BRIEF, *finetune, f"--output={tmp_path / 'no'}")
    for extra, said in {
        "--config.sampling.classes=3,7": "edit.method=finetune tunes towards one class, got sampling.classes=3,7; set",
        "--config.sampling.classes=": "edit.method=finetune needs the class to edit towards, got none; set",
        "--config.sampling.classes=12": "unknown class '12' in sampling.classes; choices: 0 to 9",
        "--config.sampling.classifier=": "sampling.classes=3 needs a class-conditional model, got one without classes",
    }.items():
        assert said in error(capsys, [*command, extra])
    assert not (tmp_path / "no").exists()


def test_a_classifier_guides_a_model_that_is_told_no_class(tiny_run: Path, classifier_run: Path, tmp_path: Path):
    guided = [f"--config.sampling.classifier={classifier_run}", "--config.sampling.classes=3"]
    counterfactual = [*FLOW, *_method("counterfactual"), *guided]
    arrays, report = _run(tiny_run, tmp_path / "a", *counterfactual, "--config.edit.num_images=2")
    assert report["classes"] == [3, 3] and report["source_classes"] is None and arrays["maps"].shape == (2, 8, 8)
    plain, _ = _run(
        tiny_run, tmp_path / "b", *counterfactual, "--config.edit.num_images=2", "--config.sampling.classifier_scale=0"
    )
    # without the classifier's gradient, the way down is the way up
    np.testing.assert_allclose(plain["x0"], plain["round_trip"], rtol=0, atol=1e-6)
    assert (arrays["x0"] != plain["x0"]).any()


def test_images_of_files_are_taken(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "photos"
    folder.mkdir()
    photos = np.random.default_rng(0).integers(0, 256, (2, 8, 8)).astype(np.uint8)
    for name, photo in zip("ab", photos, strict=True):
        Image.fromarray(photo).save(folder / f"{name}.png")
    arrays, report = _run(tiny_run, tmp_path / "out", f"--input={folder}")
    assert report["input"] == str(folder) and report["num_images"] == 2
    assert np.abs(arrays["originals"][..., 0].astype(float) - photos).max() <= 8  # half of the 17 grey levels
    command = tiny_command("edit", tiny_run, *BRIEF, f"--output={tmp_path / 'no'}")
    Image.fromarray(photos[0][:6]).save(tmp_path / "small.png")
    for path, said in {
        "small.png": "images to edit must be 1x8x8 (C x H x W), got 1x6x8; resize them",
        "nowhere.png": "holds no images",
    }.items():
        assert said in error(capsys, [*command, f"--input={tmp_path / path}"])
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["edit.t=0.3", "edit.noise_ratio=1"], "config.edit.t and config.edit.noise_ratio both say how far"),
        (["edit.t=1.5"], "config.edit.t must be at most 1, got 1.5"),
        (
            ["edit.t=1", "sampling.grid=leading"],
            "DDIMSampler can start at t in (0, 0.751], got 1; change t, or the grid",
        ),
        (["edit.noise_ratio=1e9"], "sigma / alpha of this SDE lies in (0, 254.012], got 1e+09; change it"),
        (["edit.method=sdeditt"], "unknown edit method 'sdeditt'; did you mean 'sdedit'?"),
        (["edit.method_options=steps=3"], "unknown option of edit method 'sdedit': 'steps'"),
        (["edit.num_images=999"], "num_images must be 1 .. 360"),
        (["edit.split=tests"], "unknown split 'tests'; did you mean 'test'?"),
        (["edit.method=invert"], "edit method invert takes images up to noise by the probability flow, got DDIM"),
        (
            ["edit.method=invert", "sampling.sampler=probability_flow"],
            "edit.method=invert needs a model that is told classes, or sampling.classifier, got neither; train one",
        ),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    settings: list[str], said: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = tiny_command("edit", tiny_run, *BRIEF, f"--output={tmp_path / 'out'}")
    assert said in error(capsys, [*command, *(f"--config.{one}" for one in settings)])
    assert not (tmp_path / "out").exists()


def test_a_sampler_that_cannot_start_below_is_refused(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    class Whole(Sampler):
        def __init__(self, *, num_steps: int, grid: str) -> None: ...

        def sample(self, model, x_T, *, cond=None, noise=None, hooks=()):
            return SampleResult(x_T, 0)

    monkeypatch.setitem(SAMPLERS._factories, "whole", Whole)
    command = tiny_command("edit", tiny_run, *BRIEF, "--config.sampling.sampler=whole", f"--output={tmp_path / 'out'}")
    assert "--mode edit needs a sampler that walks down a grid, got sampling.sampler=whole" in error(capsys, command)


def test_classes_that_are_missing_or_unknown_are_refused(
    lesions_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 8, 8, 1), np.uint8))
    given = f"--input={tmp_path / 'images.npz'}"
    command = tiny_command("edit", lesions_run, *BRIEF, *LESIONS, f"--output={tmp_path / 'out'}")
    invert = [*FLOW, *_method("invert")]
    for extra, said in [
        ([given], "the model is told classes, which --input does not have; set sampling.classes"),
        ([*invert, HEALTHY, given], "--input does not have; set edit.method_options=own_class=False"),
        (invert, "edit.method=invert needs the class to edit towards, got none; set sampling.classes"),
        (
            [*invert, HEALTHY, "--config.sampling.grid=uniform", "--config.edit.t=0.2"],
            "the grid has no time with noise below t = 0.2, got sampling.grid=uniform of 4 steps; raise",
        ),
        ([*invert, "--config.sampling.classes=2"], "unknown class '2' in sampling.classes; choices: 0 to 1"),
        ([*invert, "--config.sampling.classes=helthy"], "did you mean 'healthy'?"),
    ]:
        assert said in error(capsys, [*command, *extra])
    assert not (tmp_path / "out").exists()


def test_a_model_that_always_knows_its_class_cannot_leave_it_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    always = [*LESIONS[:2], "--config.training.num_steps=1"]
    assert main.run(tiny_command("train", tmp_path / "run", *always)) == 0
    extra = [*always, *FLOW, *_method("counterfactual"), HEALTHY]
    command = tiny_command("edit", tmp_path / "run", *BRIEF, *extra, f"--output={tmp_path / 'out'}")
    assert "needs a model that is trained without now and then, got one that never was" in error(capsys, command)
    # as the message says
    assert main.run([*command, "--config.edit.method_options=own_class=True"]) == 0
