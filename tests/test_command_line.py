"""The three commands, end to end, on a network so small that they take seconds."""

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny import ROOT, tiny_command
from torch import Tensor

import main


def _last_tensors(workdir: Path) -> dict[str, Tensor]:
    newest = max((workdir / "checkpoints").glob("step_*"))
    return load_file(newest / "tensors.safetensors")


def _error(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    """Run a command that cannot work: exit code 2 and one line."""
    capsys.readouterr()
    assert main.run(arguments) == 2
    said = capsys.readouterr()
    lines = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in said.err + said.out
    return lines[0]


def _snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


def test_training_leaves_what_it_promises(tiny_run: Path):
    config = json.loads((tiny_run / "config.json").read_text())
    assert config["training"]["num_steps"] == 6 and config["data"]["dataset"] == "digits"
    assert sorted(p.name for p in (tiny_run / "checkpoints").iterdir()) == ["step_00000003", "step_00000006"]
    records = [json.loads(line) for line in (tiny_run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [2, 4, 6]
    assert list((tiny_run / "logs").glob("events.out.tfevents.*"))
    assert Image.open(tiny_run / "logs" / "learning_curve.png").size[0] > 300
    tensors = _last_tensors(tiny_run)
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


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_run: Path, tmp_path: Path):
    part = tmp_path / "part"
    dropout = "--config.model.dropout=0.3"
    whole = tmp_path / "whole"
    assert main.run(tiny_command("train", whole, dropout)) == 0
    assert main.run(tiny_command("train", part, dropout, "--config.training.num_steps=4")) == 0
    torch.rand(3)
    assert main.run(tiny_command("train", part, dropout)) == 0
    one, two = _last_tensors(whole), _last_tensors(part)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    # dropout changes the run, so that the equality above is about the network's random numbers too
    assert not torch.equal(one["model.conv_out.weight"], _last_tensors(tiny_run)["model.conv_out.weight"])
    steps = [json.loads(line)["step"] for line in (part / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_training_again_says_that_it_is_done(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    before = _last_tensors(run_copy)
    assert main.run(tiny_command("train", run_copy)) == 0
    assert "already trained to step 6" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in _last_tensors(run_copy).items())


def _start(*arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "main.py", *arguments],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )


def _wait_for_step(process: subprocess.Popen[str], workdir: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        metrics = workdir / "logs" / "metrics.jsonl"
        if metrics.is_file() and metrics.read_text().count("\n") >= 2:
            return
        time.sleep(0.02)
    pytest.fail(f"training did not start: {process.communicate()[1]}")


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path):
    workdir = tmp_path / "run"
    many = tiny_command(
        "train", workdir, "--config.training.num_steps=100000", "--config.training.checkpoint_every=90000"
    )
    process = _start(*many)
    _wait_for_step(process, workdir)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Traceback" not in said and "the same command goes on from there" in said
    (saved,) = (workdir / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))

    assert main.run(tiny_command("train", workdir, f"--config.training.num_steps={step + 3}")) == 0
    whole = tmp_path / "whole"
    assert main.run(tiny_command("train", whole, f"--config.training.num_steps={step + 3}")) == 0
    for name, tensor in _last_tensors(whole).items():
        torch.testing.assert_close(_last_tensors(workdir)[name], tensor, rtol=1e-3, atol=1e-4)


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
        extra = [f"--config.eval.batch_size={batch_size}", "--config.eval.vlb_samples_per_image=2"]
        assert main.run(tiny_command("eval", run_copy, *extra)) == 0
        reports.append(json.loads((run_copy / "eval" / "report.json").read_text())["vlb"])
    for key in ("bits_per_dim", "stderr", "diffusion", "reconstruction"):
        assert reports[0][key] == pytest.approx(reports[1][key], rel=1e-4)
    assert reports[0]["nfe"] == 3


def test_eval_takes_the_whole_split_by_default(run_copy: Path):
    extra = ["--config.eval.num_images=0", "--config.eval.vlb_samples_per_image=1", "--config.eval.batch_size=100"]
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


@pytest.mark.parametrize("sampler", ["ancestral", "ddim"])
def test_image_k_of_a_run_is_the_same_at_any_batch_size(run_copy: Path, sampler: str):
    images = []
    for batch_size in (5, 2, 1):
        extra = [f"--config.sampling.batch_size={batch_size}", f"--config.sampling.sampler={sampler}"]
        assert main.run(tiny_command("sample", run_copy, *extra)) == 0
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


@pytest.mark.parametrize("family", ["ve", "subvp"])
def test_continuous_families_train_measure_and_sample(tmp_path: Path, family: str):
    workdir = tmp_path / family
    for mode in ("train", "eval", "sample"):
        assert main.run(tiny_command(mode, workdir, config=f"{family}/digits")) == 0
    vlb = json.loads((workdir / "eval" / "report.json").read_text())["vlb"]
    assert vlb["prior"] + vlb["diffusion"] + vlb["reconstruction"] == pytest.approx(vlb["bits_per_dim"], rel=1e-9)


def test_bf16_touches_the_network_alone(tmp_path: Path):
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, "--config.training.precision=bf16")) == 0
    assert {tensor.dtype for name, tensor in _last_tensors(workdir).items() if name.startswith("model.")} == {
        torch.float32
    }


BAD_INPUT = [
    (["--config.sampling.sampler=ancestrl"], "train", "unknown sampler 'ancestrl'; did you mean 'ancestral'?"),
    (["--config.sampling.options=etaa=1", "--config.sampling.sampler=ddim"], "sample", "did you mean 'eta'?"),
    (["--config.data.dataset=digit"], "train", "unknown dataset 'digit'"),
    (["--config.sde.name=ddmp"], "train", "unknown SDE 'ddmp'; did you mean 'ddpm'?"),
    (["--config.trainin.num_steps=3"], "train", "unknown key of config: 'trainin'; did you mean 'training'?"),
    (["--config.training.num_step=3"], "train", "did you mean 'num_steps'?"),
    (["--config.training.batch_size=0"], "train", "config.training.batch_size must be at least 1, got 0"),
    (["--config.training.batch_size=many"], "train", "must be of type int, got 'many'"),
    (["--config.eval.batch_size=0"], "eval", "config.eval.batch_size must be at least 1, got 0"),
    (["--config.eval.split=valid"], "eval", "valid"),
    (["--config.eval.likelihoods=elbo"], "eval", "unknown likelihood 'elbo'"),
    (["--config.eval.num_images=361"], "eval", "360"),
    (["--config.eval.vlb_variance=tiny"], "eval", "unknown variance 'tiny'"),
    (["--config.eval.vlb_variance=learned"], "eval", "needs a model that learns its variance"),
    (["--config.model.channel_mult=1,1,1,1,1"], "train", "cannot be halved"),
    (["--config.model.parameterization=epsilon"], "train", "unknown parameterization 'epsilon'"),
    (["--config.training.precision=fp16"], "train", "unknown precision 'fp16'"),
    (["--config.optim.name=sgd"], "train", "unknown optimizer 'sgd'"),
    (["--config.device=cuda:9"], "train", "device 'cuda:9' cannot be used"),
    (["--config.plugins=nothing.py"], "train", "plugin nothing.py does not exist"),
    (["--config.data.dataset=mnist", "--config.data.root=nowhere"], "train", "train-images-idx3-ubyte"),
    (["--config.sampling.grid=unifrom"], "sample", "unknown grid 'unifrom'; did you mean 'uniform'?"),
]


@pytest.mark.parametrize(("extra", "mode", "message"), BAD_INPUT, ids=[row[2][:40] for row in BAD_INPUT])
def test_bad_input_is_one_line_and_writes_nothing(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], extra: list[str], mode: str, message: str
):
    workdir = tmp_path / "new" if mode == "train" else tiny_run
    before = _snapshot(workdir)
    assert message in _error(capsys, tiny_command(mode, workdir, *extra))
    assert _snapshot(workdir) == before and (mode != "train" or not workdir.exists())


def test_unknown_config_file_and_mode(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert "configs/vp/none.py does not exist; there are" in _error(
        capsys, ["--config", "configs/vp/none.py", "--mode", "train", "--workdir", str(tmp_path / "w")]
    )
    with pytest.raises(SystemExit) as stopped:
        main.run(["--config", "configs/vp/digits.py", "--mode", "trian"])
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_eval_and_sample_need_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for mode in ("eval", "sample"):
        assert "holds no trained run" in _error(capsys, tiny_command(mode, tmp_path / "absent"))
    assert not (tmp_path / "absent").exists()


def test_a_workdir_of_another_config_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    before = _snapshot(run_copy)
    for mode in ("train", "eval", "sample"):
        said = _error(capsys, tiny_command(mode, run_copy, "--config.model.channels=32"))
        assert "belongs to another config: model.channels was 16, is 32" in said
    assert "training.batch_size was 8, is 9" in _error(
        capsys, tiny_command("train", run_copy, "--config.training.batch_size=9")
    )
    assert _snapshot(run_copy) == before


def test_a_damaged_checkpoint_is_passed_over_and_named(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    path = run_copy / "checkpoints" / "step_00000006" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert "step_00000006 is passed over: tensors.safetensors does not match its checksum" in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 3
    # training goes on from the good one, to the same bits as before
    whole = json.loads((run_copy / "config.json").read_text())
    assert main.run(tiny_command("train", run_copy)) == 0
    assert whole["training"]["num_steps"] == 6
    assert path.is_file()


def test_no_good_checkpoint_is_refused(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (run_copy / "checkpoints").iterdir():
        (folder / "state.json").write_text("{}")
    for mode in ("train", "eval", "sample"):
        assert "no checkpoint in" in _error(capsys, tiny_command(mode, run_copy))


def test_a_checkpoint_of_another_architecture_is_passed_over(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    assert main.run(tiny_command("train", other, "--config.model.norm_groups=4", "--config.model.num_heads=2")) == 0
    wide = tmp_path / "wide"
    assert main.run(tiny_command("train", wide, "--config.model.channels=24", "--config.training.num_steps=9")) == 0
    shutil.copytree(wide / "checkpoints" / "step_00000009", run_copy / "checkpoints" / "step_00000009")
    capsys.readouterr()
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert "step_00000009 is passed over: it is of another architecture" in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 6


def test_an_unreadable_image_in_a_folder_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for split in ("train", "test"):
        (tmp_path / "images" / split).mkdir(parents=True)
        Image.new("L", (9, 9)).save(tmp_path / "images" / split / "good.png")
    (tmp_path / "images" / "train" / "torn.png").write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    extra = [
        "--config.data.dataset=folder",
        f"--config.data.root={tmp_path / 'images'}",
        "--config.data.image_size=8",
        "--config.data.channels=1",
    ]
    assert "torn.png" in _error(capsys, tiny_command("train", tmp_path / "run", *extra))
    assert not (tmp_path / "run").exists()


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


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        "training.losses.weighted_error", lambda *_, **__: torch.full((8,), float("nan")).requires_grad_()
    )
    said = _error(capsys, tiny_command("train", run_copy, "--config.training.num_steps=9"))
    assert "the loss is nan at step 8" in said
    assert max(p.name for p in (run_copy / "checkpoints").iterdir()) == "step_00000006"


def test_help_comes_without_importing_torch():
    code = "import sys, main\ntry: main.run(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
