"""The three commands, end to end, on a network so small that they take seconds."""

import io
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from in_one_process import draw
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from thinning import only
from tiny import ROOT, TINY, error, last_tensors, tiny_command

import main
from commands.modes import MODES
from experiment.build import build_dataset, build_sampler
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from models import ClippedScoreModel, ThresholdedScoreModel
from runtime.processes.ranks import Ranks


def test_training_leaves_what_it_promises(tiny_run: Path):
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["training"]["num_steps"] == 6 and config["data"]["dataset"] == "digits"
    assert sorted(p.name for p in (tiny_run / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]
    records = [json.loads(line) for line in (tiny_run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert list((tiny_run / "logs").glob("events.out.tfevents.*"))
    assert Image.open(tiny_run / "logs" / "learning_curve.png").size[0] > 300
    tensors = last_tensors(tiny_run)
    names = {name.split(".")[0] for name in tensors}
    assert names == {"model", "ema", "optim"}
    assert not torch.equal(tensors["model.conv_out.weight"], tensors["ema.conv_out.weight"])


def test_tensorboard_holds_the_same_scalars_and_a_grid_of_samples(tmp_path: Path):
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, "--config.training.sample_every=4")) == 0
    board = EventAccumulator(str(workdir / "logs"), size_guidance={"images": 0}).Reload()
    records = [json.loads(line) for line in (workdir / "logs" / "metrics.jsonl").read_text().splitlines()]
    for key in ("loss", "grad_norm", "learning_rate", "images_per_second"):
        logged = [(event.step, event.value) for event in board.Scalars(f"train/{key}")]
        assert logged == [(record["step"], pytest.approx(record[key], rel=1e-6)) for record in records]
    assert [record["learning_rate"] for record in records] == [1e-3] * 3
    (grid,) = board.Images("samples")
    assert grid.step == 4
    shown = np.asarray(Image.open(io.BytesIO(grid.encoded_image_string)))
    written = np.asarray(Image.open(workdir / "samples" / "training_00000004.png"))
    np.testing.assert_array_equal(shown, written)
    assert shown.shape == (4 * 50 + 2, 4 * 50 + 2, 3)


@pytest.mark.usefixtures("drawn")
def test_eval_writes_a_report_whose_parts_add_up(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(tiny_command("eval", run_copy)) == 0
    report = json.loads((run_copy / "eval" / "report.json").read_text())
    assert {k: report[k] for k in ("dataset", "split", "num_images", "step", "weights")} == {
        "dataset": "digits",
        "split": "test",
        "num_images": 10,
        "step": 6,
        "weights": "ema",
    }
    vlb = report["vlb"]
    assert vlb["prior"] + vlb["diffusion"] + vlb["reconstruction"] == pytest.approx(vlb["bits_per_dim"], rel=1e-9)
    assert vlb["stderr"] > 0 and vlb["nfe"] == 4
    assert sum(vlb["terms"]["bits_per_dim"]) == pytest.approx(vlb["diffusion"], rel=1e-9)
    assert vlb["terms"]["t"] == [0.5, 0.75, 1.0]
    table = capsys.readouterr().out
    assert f"{vlb['bits_per_dim']:.4f}" in table and f"{vlb['stderr']:.4f}" in table
    assert Image.open(run_copy / "eval" / "bound_terms.png").size[0] > 300


def test_eval_does_not_depend_on_the_batch_size(run_copy: Path):
    reports = []
    for batch_size in (10, 3):
        extra = [f"--config.eval.batch_size={batch_size}", "--config.eval.vlb_steps_per_image=2"]
        assert main.run(tiny_command("eval", run_copy, *extra)) == 0
        reports.append(json.loads((run_copy / "eval" / "report.json").read_text())["vlb"])
    for key in ("bits_per_dim", "stderr", "diffusion", "reconstruction"):
        assert reports[0][key] == pytest.approx(reports[1][key], rel=1e-4)
    assert reports[0]["nfe"] == 3


def test_eval_takes_the_whole_split_by_default(run_copy: Path):
    extra = ["--config.eval.num_images=0", "--config.eval.vlb_steps_per_image=1", "--config.eval.batch_size=100"]
    assert main.run(tiny_command("eval", run_copy, *extra)) == 0
    assert json.loads((run_copy / "eval" / "report.json").read_text())["num_images"] == 360


def test_sample_writes_a_picture_and_numbers(run_copy: Path):
    assert main.run(tiny_command("sample", run_copy)) == 0
    samples = np.load(run_copy / "samples" / "samples.npz")
    assert samples.files == ["arr_0"]
    images = samples["arr_0"]
    assert images.shape == (5, 8, 8, 1) and images.dtype == np.uint8
    # 17 levels, spread over 0 to 255
    assert set(np.unique(images)) <= {round(k * 255 / 16) for k in range(17)}
    grid = np.asarray(Image.open(run_copy / "samples" / "grid.png"))
    assert grid.shape == (2 * 50 + 2, 3 * 50 + 2, 3)
    np.testing.assert_array_equal(grid[2:50:6, 2:50:6, 0], images[0, :, :, 0])


@pytest.mark.parametrize(
    ("options", "wrapper"),
    [
        pytest.param({}, ClippedScoreModel, marks=pytest.mark.slow),
        ({"clip_x0": False}, lambda model: model),
        pytest.param({"threshold_x0": 0.7}, partial(ThresholdedScoreModel, quantile=0.7), marks=pytest.mark.slow),
        ({"threshold_x0": 0.7, "clip_x0": False}, partial(ThresholdedScoreModel, quantile=0.7)),
    ],
)
def test_samples_keep_x0_in_range_as_the_config_says(run_copy: Path, options: dict[str, Any], wrapper: Any):
    extra = [f"--config.sampling.{key}={value}" for key, value in options.items()]
    assert main.run(tiny_command("sample", run_copy, *extra)) == 0
    images = np.load(run_copy / "samples" / "samples.npz")["arr_0"]
    config = load_config(str(ROOT / "configs/vp/digits.py"), TINY)
    dataset = build_dataset(config, "train")
    model, _ = load_trained(config, run_copy, dataset.kind, torch.device("cpu"))
    how = {"sample_shape": dataset.image_shape, "num_samples": 5, "batch_size": 3}
    expected = {
        kind: dataset.space.pixels(draw(build_sampler(config), wrap(model), **how)[0])
        for kind, wrap in (("this", wrapper), ("clipped", ClippedScoreModel))
    }
    np.testing.assert_array_equal(images, expected["this"])
    assert (images == expected["clipped"]).all() == (not options)


@pytest.mark.parametrize(
    ("sampler", "options"),
    [
        ("ancestral", ""),
        pytest.param("ddim", "", marks=pytest.mark.slow),
        pytest.param("probability_flow", "rtol=1e-2,atol=1e-2", marks=pytest.mark.slow),
        pytest.param("probability_flow", "", marks=pytest.mark.slow),
    ],
)
def test_image_k_of_a_run_is_the_same_at_any_batch_size(run_copy: Path, sampler: str, options: str):
    images = []
    for batch_size in (5, 2, 1):
        extra = [f"--config.sampling.batch_size={batch_size}", f"--config.sampling.sampler={sampler}"]
        assert main.run(tiny_command("sample", run_copy, *extra, f"--config.sampling.options={options}")) == 0
        images.append(np.load(run_copy / "samples" / "samples.npz")["arr_0"].astype(int))
    # a convolution may round differently in another batch; that moves a pixel by one level at the very most
    for other in images[1:]:
        assert np.abs(images[0] - other).max() <= 16
        assert (images[0] == other).mean() > 0.99
    assert (images[0][0] != images[0][1]).any()


def test_class_conditional_run(tmp_path: Path):
    workdir = tmp_path / "run"
    extra = ["--config.model.class_conditional=true", "--config.sampling.num_samples=11"]
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, workdir, *extra)) == 0
    assert np.load(workdir / "samples" / "samples.npz")["arr_1"].tolist() == [*range(10), 0]


@pytest.mark.parametrize("family", only(("ve",), ["ve", "subvp"]))
def test_continuous_families_train_measure_and_sample(tmp_path: Path, family: str):
    workdir = tmp_path / family
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, workdir, config=f"{family}/digits")) == 0
    vlb = json.loads((workdir / "eval" / "report.json").read_text())["vlb"]
    assert vlb["prior"] + vlb["diffusion"] + vlb["reconstruction"] == pytest.approx(vlb["bits_per_dim"], rel=1e-9)


def test_bf16_touches_the_network_alone(tmp_path: Path):
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, "--config.training.precision=bf16")) == 0
    assert {tensor.dtype for name, tensor in last_tensors(workdir).items() if name.startswith("model.")} == {
        torch.float32
    }


def test_folder_of_images_trains_measures_and_samples(tmp_path: Path):
    generator = np.random.default_rng(0)
    for k in range(20):
        folder = tmp_path / "images" / f"class{k % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    extra = [
        "--config.data.dataset=folder",
        f"--config.data.root={tmp_path / 'images'}",
        "--config.data.image_size=8",
        "--config.data.channels=3",
        "--config.eval.num_images=0",
    ]
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, tmp_path / "run", *extra)) == 0
    assert json.loads((tmp_path / "run" / "eval" / "report.json").read_text())["num_images"] == 2
    assert np.load(tmp_path / "run" / "samples" / "samples.npz")["arr_0"].shape == (5, 8, 8, 3)


def test_help_comes_without_importing_torch():
    code = "import sys, main\ntry: main.run(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(("mode", "section"), [("eval", "eval"), ("sample", "sampling")])
def test_a_command_says_how_its_network_computes(
    run_copy: Path, mode: str, section: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = (f"--config.{section}.precision=bf16", f"--config.{section}.compile=on")
    assert main.run(tiny_command(mode, run_copy, *asked)) == 0
    said = capsys.readouterr().err
    assert "bf16: as asked" in said
    assert "not compiled: there is no C++ compiler no-such-compiler; install one or set CXX" in said


@pytest.mark.parametrize("mode", sorted(name for name, mode in MODES.items() if mode.one_process))
def test_modes_of_one_process_refuse_several(
    mode: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("runtime.processes.ranks.Ranks.from_environment", lambda: Ranks(0, 2))
    message = error(capsys, tiny_command(mode, tmp_path / "run"))
    assert message == f"error: --mode {mode} is for one process, got 2; run it without torchrun"
    assert not (tmp_path / "run").exists()
