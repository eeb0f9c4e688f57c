"""An interrupted ``--mode eval`` goes on to the same bits; what is of another measurement, or damaged, is not used."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from eval_runs import eval_command, results
from killing import Killer
from thinning import only
from tiny import ROOT, error, tiny_command

import main
from evaluation import fingerprints
from evaluation.kept_batches import PartialResults
from evaluation.measurement import EvalSplit

UNITS = [(0, "vlb"), (0, "ode"), (1, "vlb"), (1, "ode"), (2, "vlb"), (2, "ode")]


def _interrupt_after(units: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C while one batch more than that is measured."""
    whole, calls = EvalSplit.measure, []

    def measure(self: EvalSplit, *arguments: object) -> object:
        calls.append(1)
        if len(calls) > units:
            signal.raise_signal(signal.SIGINT)
        return whole(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(EvalSplit, "measure", measure)


@pytest.fixture(scope="module")
def _stopped_evaluation(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = Path(shutil.copytree(tiny_run, tmp_path_factory.mktemp("stopped") / "run"))
    with pytest.MonkeyPatch.context() as patched:
        _interrupt_after(3, patched)
        assert main.run(eval_command(workdir)) == 130
    assert len(list((workdir / "eval" / "partial").rglob("*.batch"))) == 3
    return workdir


@pytest.fixture
def interrupted(_stopped_evaluation: Path, tmp_path: Path) -> Path:
    """A work directory whose evaluation was stopped after two batches of the bound and one of the ODE."""
    return Path(shutil.copytree(_stopped_evaluation, tmp_path / "run"))


def test_kill_9_resumes_to_the_same_bits(
    killer: Killer, run_copy: Path, undisturbed: dict[str, bytes], capfd: pytest.CaptureFixture
):
    process = killer.start(eval_command(run_copy))
    deadline = time.monotonic() + 120
    while len(list((run_copy / "eval").rglob("*.batch"))) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.001)
    os.kill(process, signal.SIGKILL)
    assert killer.wait(process) == -signal.SIGKILL
    assert not (run_copy / "eval" / "report.json").exists()
    # what a process leaves that is killed while it writes
    (run_copy / "eval" / "partial" / "vlb" / ".000001.batch.x1").write_bytes(b"half")
    assert main.run(eval_command(run_copy)) == 0
    assert "goes on: " in capfd.readouterr().err
    assert results(run_copy) == undisturbed


@pytest.mark.parametrize("units", only((3,), range(len(UNITS))))
def test_ctrl_c_at_any_batch_goes_on_with_the_next(
    run_copy: Path,
    undisturbed: dict[str, bytes],
    units: int,
    measured: list[tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    with monkeypatch.context() as patched:
        _interrupt_after(units, patched)
        assert main.run(eval_command(run_copy)) == 130
    vlb, ode = (sum(name == kind for _, name in UNITS[:units]) for kind in ("vlb", "ode"))
    kept = f"{vlb} of 3 batches of vlb and {ode} of 3 batches of ode"
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == f"stopped with {kept} kept; the same command goes on from there"
    assert measured == UNITS[:units]
    assert main.run(eval_command(run_copy)) == 0
    assert measured == UNITS
    assert (f"goes on: {kept} were measured before" in capsys.readouterr().err) == (units > 0)
    assert results(run_copy) == undisturbed


def test_a_finished_evaluation_is_measured_anew(
    run_copy: Path, undisturbed: dict[str, bytes], measured: list[tuple[int, str]]
):
    (run_copy / "eval").mkdir()
    for name, data in undisturbed.items():
        (run_copy / "eval" / name).write_bytes(data)
    assert main.run(eval_command(run_copy)) == 0
    assert measured == UNITS
    assert results(run_copy) == undisturbed


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-300] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a flipped bit": _flip,
    "cut off": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "empty": lambda path: path.write_bytes(b""),
    "another batch": lambda path: shutil.copy(path.with_name("000001.batch"), path),
    "another likelihood": lambda path: shutil.copy(path.parent.with_name("ode") / path.name, path),
}


@pytest.mark.parametrize("kind", only(("a flipped bit",), DAMAGES))
def test_a_damaged_batch_is_measured_again(
    interrupted: Path,
    undisturbed: dict[str, bytes],
    kind: str,
    measured: list[tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
):
    DAMAGES[kind](interrupted / "eval" / "partial" / "vlb" / "000000.batch")
    assert main.run(eval_command(interrupted)) == 0
    assert "vlb 000000.batch cannot be used; measured again" in capsys.readouterr().err
    assert measured == [(0, "vlb"), (1, "ode"), (2, "vlb"), (2, "ode")]
    assert results(interrupted) == undisturbed


def test_a_damaged_fingerprint_costs_nothing(
    interrupted: Path, undisturbed: dict[str, bytes], measured: list[tuple[int, str]]
):
    (interrupted / "eval" / "partial" / "vlb" / "fingerprint.json").write_bytes(b"{")
    (interrupted / "eval" / "partial" / "ode" / "fingerprint.json").unlink()
    assert main.run(eval_command(interrupted)) == 0
    assert measured == UNITS[3:]
    assert results(interrupted) == undisturbed


# what changes, what was kept and is good no longer, and how the line names it
CHANGES: dict[str, tuple[set[str], str]] = {
    "--config.seed=1": ({"vlb", "ode"}, "seed was 0, is 1"),
    "--config.eval.batch_size=3": ({"vlb", "ode"}, "eval.batch_size was 2, is 3"),
    "--config.eval.num_images=5": ({"vlb", "ode"}, "num_images was 6, is 5"),
    "--config.eval.split=train": ({"vlb", "ode"}, "eval.split was 'test', is 'train'"),
    "--config.eval.clip_x0=false": ({"vlb", "ode"}, "eval.clip_x0 was True, is False"),
    "--config.eval.vlb_variance=large": ({"vlb"}, "eval.vlb_variance was 'auto', is 'large'"),
    "--config.eval.ode_rtol=0.2": ({"ode"}, "eval.ode_rtol was 0.5, is 0.2"),
    "--config.eval.ode_max_nfe=9999": (set(), ""),
    "--config.eval.likelihoods=ode,vlb": (set(), ""),
}


@pytest.mark.parametrize("change", only(("--config.eval.vlb_variance=large",), CHANGES))
def test_only_what_is_of_the_same_measurement_is_used(
    interrupted: Path,
    change: str,
    measured: list[tuple[int, str]],
    capsys: pytest.CaptureFixture[str],
):
    lost, why = CHANGES[change]
    command = eval_command(interrupted, change)
    capsys.readouterr()
    assert main.run(command) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "holds another measurement" in line]
    assert len(said) == len(lost)
    for name, line in zip(sorted(lost, reverse=True), said, strict=True):
        assert f"{name} holds another measurement (" in line and why in line and line.endswith("; starts anew")
    kept = {unit for unit in UNITS[:3] if unit[1] not in lost}
    assert not kept & set(measured) and len(kept) + len(measured) >= 4
    # the same as from the beginning
    resumed = results(interrupted)
    assert main.run(command) == 0
    assert results(interrupted) == resumed


@pytest.mark.slow
def test_another_checkpoint_starts_anew(
    interrupted: Path, measured: list[tuple[int, str]], capsys: pytest.CaptureFixture[str]
):
    assert main.run(tiny_command("train", interrupted, "--config.training.num_steps=8")) == 0
    capsys.readouterr()
    assert main.run(eval_command(interrupted)) == 0
    said = capsys.readouterr().err
    assert said.count("holds another measurement (step was 6, is 8; weights was ") == 2 and "goes on" not in said
    assert measured == UNITS
    assert json.loads(results(interrupted)["report.json"])["step"] == 8


@pytest.mark.slow
def test_other_weights_of_the_same_step_start_anew(
    interrupted: Path, measured: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    from commands import subject

    whole = subject.load_same_trained

    def nudged(*arguments: object, **options: object) -> object:
        model, step = whole(*arguments, **options)  # type: ignore[arg-type]
        with torch.no_grad():
            next(model.parameters()).view(-1)[0] += 1e-6
        return model, step

    monkeypatch.setattr(subject, "load_same_trained", nudged)
    assert main.run(eval_command(interrupted)) == 0
    assert capsys.readouterr().err.count("holds another measurement (weights was ") == 2
    assert measured == UNITS


@pytest.mark.parametrize("changed", ["code", "plugins"])
def test_other_code_starts_anew(
    interrupted: Path,
    changed: str,
    measured: list[tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    if changed == "code":
        monkeypatch.setattr(fingerprints, "_code_digest", lambda: "another")
    else:
        monkeypatch.setattr(fingerprints, "plugin_digests", lambda plugins: {"mine.py": "another"})
    assert main.run(eval_command(interrupted)) == 0
    assert capsys.readouterr().err.count(f"holds another measurement ({changed} was ") == 2
    assert measured == UNITS


def test_the_code_that_is_looked_at_is_all_that_measures_and_samples():
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert set(fingerprints._ROOMS) == rooms - {"benchmarks", "configs", "proofs", "training"}


def test_other_images_start_anew(
    tmp_path: Path, measured: list[tuple[int, str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    pixels = np.random.default_rng(0).integers(0, 4, (8, 8, 8, 1), dtype=np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"{split}.npz", images=pixels, num_levels=4)
    extra = ["--config.data.dataset=npz", f"--config.data.root={tmp_path}", "--config.eval.likelihoods=vlb"]
    assert main.run(tiny_command("train", tmp_path / "run", *extra)) == 0
    with monkeypatch.context() as patched:
        _interrupt_after(1, patched)
        assert main.run(eval_command(tmp_path / "run", *extra)) == 130
    pixels[0, 0, 0] ^= 1
    np.savez(tmp_path / "test.npz", images=pixels, num_levels=4)
    assert main.run(eval_command(tmp_path / "run", *extra)) == 0
    assert "holds another measurement (images was " in capsys.readouterr().err
    assert measured == [(0, "vlb"), (0, "vlb"), (1, "vlb"), (2, "vlb")]


def test_bytes_of_a_batch_are_good_for_that_batch_alone(tmp_path: Path):
    values = {"prior": np.arange(3.0), "nfe": np.asarray(4)}
    one = PartialResults(tmp_path, {"seed": 0})
    data = one.encode(7, values)
    back = one.decode(7, data)
    assert back.keys() == values.keys() and all(np.array_equal(back[key], values[key]) for key in values)
    for other, k in ((one, 8), (PartialResults(tmp_path, {"seed": 1}), 7)):
        with pytest.raises(ValueError, match="does not match its checksum"):
            other.decode(k, data)
    for place in range(len(data)):
        with pytest.raises(ValueError, match="does not match its checksum"):
            one.decode(7, data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :])


def test_a_place_that_cannot_be_written_is_one_line(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    (run_copy / "eval").write_text("in the way")
    assert "eval" in error(capsys, eval_command(run_copy))
