"""Runs that are stopped, killed or damaged go on to the same bits, and never save what is not finite."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from killing import Killer
from safetensors.torch import load_file
from thinning import only
from tiny import ROOT, TINY, error, last_tensors, snapshot, tiny_command

import main
from experiment.build import build_dataset
from experiment.config import load_config
from training.build import build_state
from training.trainer import StepResult, Trainer


def _stop_after(steps: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C in that step."""
    whole_step = Trainer.step

    def press(self: Trainer, **options: bool) -> StepResult:
        result = whole_step(self, **options)
        if self.state.step == steps:
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Trainer, "step", press)


def test_ctrl_c_in_the_last_step_is_not_swallowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _stop_after(6, monkeypatch)
    assert main.run(tiny_command("train", tmp_path / "run")) == 130
    assert max(p.name for p in (tmp_path / "run" / "checkpoints").iterdir()) == "step_00000006"


def test_a_stopped_run_goes_on_to_the_same_bits(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    part = tmp_path / "part"
    dropout = "--config.model.dropout=0.3"
    whole = tmp_path / "whole"
    windows = "--config.training.log_every=3"
    assert main.run(tiny_command("train", whole, dropout, windows)) == 0
    _stop_after(4, monkeypatch)
    assert main.run(tiny_command("train", part, dropout, windows)) == 130
    monkeypatch.undo()
    torch.rand(3)
    assert main.run(tiny_command("train", part, dropout, windows)) == 0
    one, two = last_tensors(whole), last_tensors(part)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    # dropout changes the run, so that the equality above is about the network's random numbers too
    assert not torch.equal(one["model.conv_out.weight"], last_tensors(tiny_run)["model.conv_out.weight"])
    # what is logged is the same too, also where a window of losses was cut in two
    logged = [
        [(record["step"], record["loss"]) for record in map(json.loads, path.read_text().splitlines())]
        for path in (folder / "logs" / "metrics.jsonl" for folder in (whole, part))
    ]
    assert logged[0] == logged[1] and [step for step, _ in logged[0]] == [3, 6]


IMPORTANCE = (
    "--config.sde.num_steps=4",
    "--config.training.loss=vlb",
    "--config.training.step_sampling=importance",
    "--config.training.batch_size=24",
)


# of what test_kills.py has in a run that is killed
@pytest.mark.slow
def test_the_history_of_losses_goes_on_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main.run(tiny_command("train", whole, *IMPORTANCE)) == 0
    _stop_after(4, monkeypatch)
    assert main.run(tiny_command("train", part, *IMPORTANCE)) == 130
    monkeypatch.undo()
    assert main.run(tiny_command("train", part, *IMPORTANCE)) == 0
    one, two = last_tensors(whole), last_tensors(part)
    assert one.keys() == two.keys() and {"loss.values", "loss.counts"} <= one.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    # the history was full, so that it chose rows, and counts every sample
    assert int(one["loss.counts"].sum()) == 6 * 24 and int(one["loss.counts"].min()) >= 10
    # bits/dim of such a checkpoint need none of the history
    assert main.run(tiny_command("eval", part, *IMPORTANCE)) == 0


LEARNED = ("--config.data.dataset=digits", "--config.model.attention_resolutions=4")


def test_a_learned_noise_schedule_is_saved_and_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert main.run(tiny_command("train", whole, *LEARNED, config="vp/mnist_vdm")) == 0
    _stop_after(4, monkeypatch)
    assert main.run(tiny_command("train", part, *LEARNED, config="vp/mnist_vdm")) == 130
    monkeypatch.undo()
    assert main.run(tiny_command("train", part, *LEARNED, config="vp/mnist_vdm")) == 0
    one, two = last_tensors(whole), last_tensors(part)
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]), name
    for name in ("gamma_min", "gamma_max", "bias"):
        trained, averaged = one[f"sde.model.{name}"], one[f"sde.ema.{name}"]
        assert trained.dtype == averaged.dtype == torch.float64 and not torch.equal(trained, averaged)
    assert float(one["sde.model.gamma_min"]) != -13.3


def test_training_again_says_that_it_is_done(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    before = last_tensors(run_copy)
    assert main.run(tiny_command("train", run_copy)) == 0
    assert "already trained to step 6" in capsys.readouterr().err
    assert all(torch.equal(value, before[name]) for name, value in last_tensors(run_copy).items())


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


def test_ctrl_c_saves_and_the_same_command_goes_on(killer: Killer, tmp_path: Path):
    workdir = tmp_path / "run"
    many = tiny_command(
        "train", workdir, "--config.training.num_steps=100000", "--config.training.checkpoint_every=90000"
    )
    process = killer.start(many)
    assert killer.began(process)
    os.kill(process, signal.SIGINT)
    assert killer.wait(process) == 130
    said = killer.said()
    assert "Traceback" not in said and "the same command goes on from there" in said
    (saved,) = (workdir / "checkpoints").iterdir()
    step = int(saved.name.removeprefix("step_"))

    for folder in (workdir, tmp_path / "whole"):
        assert main.run(tiny_command("train", folder, f"--config.training.num_steps={step + 3}")) == 0
    whole = last_tensors(tmp_path / "whole")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in last_tensors(workdir).items())


# beside the kills of test_kills.py, which come from a server that has torch imported already
@pytest.mark.slow
def test_kill_9_resumes_to_the_same_bits(tmp_path: Path):
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
    one, two = last_tensors(whole), last_tensors(part)
    assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
    assert sorted(p.name for p in (part / "checkpoints").iterdir()) == [f"step_{k:08d}" for k in (52, 56, 60)]


def test_a_damaged_checkpoint_is_passed_over_and_named(
    tiny_run: Path, run_copy: Path, capsys: pytest.CaptureFixture[str]
):
    path = run_copy / "checkpoints" / "step_00000006" / "tensors.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert "step_00000006 is passed over: tensors.safetensors has " in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 3
    # training goes on from the good one, to the same bits as before
    assert main.run(tiny_command("train", run_copy)) == 0
    whole = last_tensors(tiny_run)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in last_tensors(run_copy).items())


def test_a_checkpoint_of_another_architecture_is_passed_over(
    run_copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wide = tmp_path / "wide"
    assert main.run(tiny_command("train", wide, "--config.model.channels=24", "--config.training.num_steps=9")) == 0
    shutil.copytree(wide / "checkpoints" / "step_00000009", run_copy / "checkpoints" / "step_00000009")
    capsys.readouterr()
    assert main.run(tiny_command("eval", run_copy)) == 0
    assert "step_00000009 is passed over: it is of another architecture" in capsys.readouterr().err
    assert json.loads((run_copy / "eval" / "report.json").read_text())["step"] == 6


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_checkpoint(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(
        "training.losses.base.weighted_error", lambda *_, **__: torch.full((8,), float("nan")).requires_grad_()
    )
    few = ("--config.training.num_steps=9", "--config.training.max_bad_steps=2")
    said = error(capsys, tiny_command("train", run_copy, *few))
    assert "the loss is nan at step 9, as in the 2 steps before it, which were skipped" in said
    assert max(p.name for p in (run_copy / "checkpoints").iterdir()) == "step_00000006"


@pytest.mark.parametrize("log_every", only((1000,), [1, 1000]))
def test_weights_that_are_not_finite_are_never_saved(
    tmp_path: Path, log_every: int, capsys: pytest.CaptureFixture[str]
):
    workdir = tmp_path / "run"
    wild = ["--config.optim.learning_rate=1e3", "--config.training.checkpoint_every=1", "--config.training.grad_clip=0"]
    # one step is enough: Adam's first update has the size of the learning rate
    extra = [*wild, "--config.model.norm_eps=1e-12", f"--config.training.log_every={log_every}"]
    code = main.run(tiny_command("train", workdir, *extra, "--config.training.num_steps=40"))
    said = capsys.readouterr().err
    assert (code, "not finite" in said or "the loss is" in said) in ((2, True), (0, False))
    for path in (workdir / "checkpoints").glob("step_*/tensors.safetensors"):
        assert all(bool(torch.isfinite(t).all()) for n, t in load_file(path).items() if n.startswith("model."))


def test_ctrl_c_does_not_save_what_is_not_finite(run_copy: Path):
    config = load_config(str(ROOT / "configs/vp/digits.py"), [o for o in TINY if o.startswith("--config.")])
    state = build_state(config, build_dataset(config, "train").kind, torch.device("cpu"))
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
    before = snapshot(run_copy / "eval")
    monkeypatch.setattr(
        "models.backbones.UNet.forward", lambda self, x, c_noise, cond=None: torch.full_like(x, float("nan"))
    )
    assert "the model's answer is not finite at t = 0.25" in error(capsys, tiny_command("eval", run_copy))
    assert "stopped being finite" in error(capsys, tiny_command("sample", run_copy))
    assert snapshot(run_copy / "eval") == before


def test_ctrl_c_in_eval_says_what_is_kept(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def interrupt(self: object, x: torch.Tensor, *_: object) -> torch.Tensor:
        if not x.is_meta:  # where its operations are counted
            raise KeyboardInterrupt
        return x

    monkeypatch.setattr("models.backbones.UNet.forward", interrupt)
    assert main.run(tiny_command("eval", run_copy, "--config.eval.vlb_steps_per_image=2")) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped before the first batch; the same command begins again"
    assert main.run(tiny_command("eval", run_copy)) == 130
    said = capsys.readouterr().err.splitlines()[-1]
    assert said == "stopped with 0 of 3 batches of vlb kept; the same command goes on from there"
