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
from tiny import ROOT, TINY, tiny_command
from torch import Tensor

import main
from training.build import build_dataset
from training.config import load_config
from training.state import TrainingState


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

    for folder in (workdir, tmp_path / "whole"):
        finished = _start(*tiny_command("train", folder, f"--config.training.num_steps={step + 3}"))
        assert finished.wait(timeout=120) == 0
    whole = _last_tensors(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in _last_tensors(workdir).items())


def test_kill_9_at_any_moment_resumes_to_the_same_bits(tmp_path: Path):
    dropout = ["--config.model.dropout=0.3", "--config.training.num_steps=60", "--config.training.checkpoint_every=4"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    undisturbed = _start(*tiny_command("train", whole, *dropout))
    killed = _start(*tiny_command("train", part, *dropout))
    _wait_for_step(killed, part)
    killed.kill()
    killed.wait()
    killed = _start(*tiny_command("train", part, *dropout))
    time.sleep(3.5)
    killed.kill()
    killed.wait()
    assert undisturbed.wait(timeout=120) == 0
    assert _start(*tiny_command("train", part, *dropout)).wait(timeout=120) == 0
    one, two = _last_tensors(whole), _last_tensors(part)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert sorted(p.name for p in (part / "checkpoints").iterdir()) == [f"step_{k:08d}" for k in (52, 56, 60)]


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
    (["--config.sampling.options=num_steps=3"], "sample", "set config.sampling.num_steps"),
    (["--config.sampling.options=variance=3"], "sample", "unknown variance 3"),
    (["--config.sampling.options=eta=x", "--config.sampling.sampler=ddim"], "sample", "cannot be built"),
    (["--config.sampling.options=eta=nan", "--config.sampling.sampler=ddim"], "sample", "cannot be built"),
    (["--config.sampling.options=denoise_final=maybe"], "sample", "denoise_final must be None, True or False"),
    (["--config.sampling.num_steps=10000000000000"], "sample", "must be at most 1000000"),
    (["--config.sampling.grid=foo"], "train", "unknown grid 'foo'"),
    (["--config.eval.likelihoods=(1,2)"], "eval", "config.eval.likelihoods must be of type tuple"),
    (["--config.eval.likelihoods="], "eval", "eval.likelihoods is empty"),
    (["--config.eval.split=foo"], "train", "unknown split 'foo'"),
    (["--config.eval.vlb_variance=foo"], "train", "unknown variance 'foo'"),
    (["--config.eval.likelihoods=elbo"], "train", "unknown likelihood 'elbo'"),
    (["--config.sde.num_steps=-5"], "train", "num_steps of at least 2, got -5"),
    (["--config.model.channel_mult=[[1,2],3]"], "train", "config.model.channel_mult must be of type tuple"),
    (["--config.model.channel_mult=(1.5,2)"], "train", "config.model.channel_mult must be of type tuple"),
    (["--config.model.learned_variance=true"], "train", "model.learned_variance cannot be trained yet"),
    (["--config.model.data_std=0"], "train", "data_std must be above 0"),
    (["--config.model.dropout=1"], "train", "config.model.dropout must be at most 0.999"),
    (["--config.training.grad_clip=nan"], "train", "config.training.grad_clip must be at least 0, got nan"),
    (["--config.optim.learning_rate=inf"], "train", "config.optim.learning_rate must be at most"),
    (["--config.optim.beta1=2"], "train", "config.optim cannot be used: Invalid beta parameter"),
    (["--config.seed=99999999999999999999"], "train", "config.seed must lie in"),
    (["--config.device=meta"], "train", "device 'meta' cannot be used"),
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


def test_a_damaged_checkpoint_is_passed_over_and_named(
    tiny_run: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]
):
    path = run_copy / "checkpoints" / "step_00000006" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert "step_00000006 is passed over: tensors.safetensors does not match its checksum" in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 3
    # training goes on from the good one, to the same bits as before
    assert main.run(tiny_command("train", run_copy)) == 0
    whole = _last_tensors(tiny_run)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in _last_tensors(run_copy).items())


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


@pytest.mark.parametrize("log_every", [1, 1000])
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, log_every: int, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    wild = ["--config.optim.learning_rate=1e3", "--config.training.checkpoint_every=1", "--config.training.grad_clip=0"]
    # one step is enough: Adam's first update has the size of the learning rate
    extra = [*wild, "--config.model.norm_eps=0", f"--config.training.log_every={log_every}"]
    code = main.run(tiny_command("train", workdir, *extra, "--config.training.num_steps=40"))
    said = capsys.readouterr().err
    assert (code, "not finite" in said or "the loss is" in said) in ((2, True), (0, False))
    for path in (workdir / "checkpoints").glob("step_*/tensors.safetensors"):
        assert all(bool(torch.isfinite(t).all()) for n, t in load_file(path).items() if n.startswith("model."))


def test_ctrl_c_does_not_save_what_is_not_finite(run_copy: Path):
    config = load_config(str(ROOT / "configs/vp/digits.py"), [o for o in TINY if o.startswith("--config.")])
    state = TrainingState.create(config, build_dataset(config, "train"), torch.device("cpu"))
    assert state.restore(run_copy / "checkpoints") and state.step == 6
    with torch.no_grad():
        next(state.model.parameters()).view(-1)[0] = float("nan")
    state.step = 7
    with pytest.raises(FloatingPointError, match="a weight is not finite at step 7"):
        state.save(run_copy / "checkpoints", keep=1)
    assert len(list((run_copy / "checkpoints").iterdir())) == 2


def test_eval_of_a_network_that_is_not_finite_is_refused(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert main.run(tiny_command("eval", run_copy)) == 0
    before = _snapshot(run_copy / "eval")
    monkeypatch.setattr(
        "models.backbones.UNet.forward", lambda self, x, c_noise, cond=None: torch.full_like(x, float("nan"))
    )
    assert "the network's output is not finite" in _error(capsys, tiny_command("eval", run_copy))
    assert "stopped being finite" in _error(capsys, tiny_command("sample", run_copy))
    assert _snapshot(run_copy / "eval") == before


def test_train_that_cannot_restore_leaves_the_config_alone(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (run_copy / "checkpoints").iterdir():
        (folder / "manifest.json").write_text("{}")
    before = _snapshot(run_copy)
    assert "no checkpoint in" in _error(capsys, tiny_command("train", run_copy, "--config.training.num_steps=77"))
    assert _snapshot(run_copy) == before


def test_damaged_metrics_do_not_stop_a_run(run_copy: Path):
    path = run_copy / "logs" / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'3\n{"step": 2}\n{"step": 6, "lo\xff')
    assert main.run(tiny_command("train", run_copy, "--config.training.num_steps=8")) == 0
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [2, 4, 6, 8]


PLUGINS = {
    "raises": ("raise RuntimeError('no')", "RuntimeError: no"),
    "exits": ("import sys; sys.exit(0)", "SystemExit: 0"),
    "abstract": (
        "from samplers import *\n@register_sampler('p1')\nclass P1(StepSampler): pass",
        "sampler 'p1' cannot be built",
    ),
    "foreign": (
        "from samplers import *\n@register_sampler('p2')\nclass P2:\n  def __init__(self, **k): pass",
        "is a P2",
    ),
    "shape": (
        "from samplers import *\n@register_sampler('p3')\nclass P3(StepSampler):\n"
        "  def step(self, model, x_t, t, s, *, cond, noise): return x_t[..., :4]",
        "P3.step must return shape [3, 1, 8, 8], got [3, 1, 8, 4]",
    ),
}


@pytest.mark.parametrize("kind", sorted(PLUGINS))
def test_bad_plugins_are_one_line(run_copy: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]):
    code, message = PLUGINS[kind]
    (tmp_path / "plugin.py").write_text(code)
    name = {"abstract": "p1", "foreign": "p2", "shape": "p3"}.get(kind, "ddim")
    extra = [f"--config.plugins={tmp_path / 'plugin.py'}", f"--config.sampling.sampler={name}"]
    before = _snapshot(run_copy)
    assert message in _error(capsys, tiny_command("sample", run_copy, *extra))
    assert _snapshot(run_copy) == before


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise KeyError('x')", "failed: KeyError"),
        ("return None", "must return a ConfigDict, got NoneType"),
        ("import sys; sys.exit(0)", "failed: SystemExit"),
    ],
)
def test_bad_config_files_are_one_line(tmp_path: Path, body: str, message: str, capsys: pytest.CaptureFixture[str]):
    (tmp_path / "c.py").write_text(f"def get_config():\n    {body}\n")
    assert message in _error(capsys, ["--config", str(tmp_path / "c.py"), "--mode", "train"])


def test_ctrl_c_in_eval_says_stopped(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("models.backbones.UNet.forward", interrupt)
    assert main.run(tiny_command("eval", run_copy)) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "stopped"


def test_help_comes_without_importing_torch():
    code = "import sys, main\ntry: main.run(['--help'])\nexcept SystemExit: assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True)
