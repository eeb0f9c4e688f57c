"""Settings that change between the commands of one run."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from thinning import only
from tiny import ROOT, error, last_tensors, snapshot, tiny_command

import main
from runtime.signals import StopRequest
from training.changes import history_mismatch
from training.optimization import learning_rate_factor


@pytest.mark.parametrize("mode", ["new", "resumed"])
def test_steps_at_which_the_learning_rate_is_0_are_refused(
    run_copy: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
):
    workdir = run_copy if mode == "resumed" else tmp_path / "new"
    before = snapshot(workdir)
    extra = ("--config.training.num_steps=9", "--config.optim.decay_steps=8")
    said = error(capsys, tiny_command("train", workdir, *extra))
    assert "num_steps must be at most config.optim.decay_steps=8" in said and "got 9; raise config.optim.decay" in said
    assert snapshot(workdir) == before and (mode == "resumed" or not workdir.exists())


def test_a_run_whose_learning_rate_has_fallen_to_0_can_be_made_longer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = tiny_command("train", tmp_path, "--config.optim.decay_steps=6")
    assert main.run(command) == 0
    assert main.run(command) == 0
    assert "raise --config.training.num_steps and --config.optim.decay_steps to train on" in capsys.readouterr().err
    before = last_tensors(tmp_path)
    longer = tiny_command("train", tmp_path, "--config.training.num_steps=8", "--config.optim.decay_steps=9")
    assert main.run(longer) == 0
    assert "optim.decay_steps was 6, is 9 from here on" in capsys.readouterr().err
    after = last_tensors(tmp_path)
    assert any(not torch.equal(tensor, after[name]) for name, tensor in before.items() if name.startswith("model."))
    record = json.loads((tmp_path / "logs/metrics.jsonl").read_text().splitlines()[-1])
    expected = 1e-3 * learning_rate_factor(7, 2, decay_steps=9)
    assert record["step"] == 8 and record["learning_rate"] == pytest.approx(expected)
    # what was trained past its end, as was possible once, is still sampled
    past = ("--config.training.num_steps=12", "--config.optim.decay_steps=9")
    assert main.run(tiny_command("sample", tmp_path, *past)) == 0


CHANGES = (
    "optim.learning_rate=5e-4",
    "training.grad_clip=0.5",
    "optim.decay_steps=9",
    "training.precision=bf16",
    "training.accumulation_steps=2",
    "training.log_every=3",
    "training.keep_checkpoints=1",
    "eval.num_images=4",
    "sampling.num_steps=7",
)


def _changed(workdir: Path, *extra: str) -> list[str]:
    return tiny_command("train", workdir, *(f"--config.{one}" for one in (*CHANGES, *extra)))


def _newest_state(workdir: Path) -> dict:
    return json.loads((max((workdir / "checkpoints").glob("step_*")) / "state.json").read_text())


def _rate(workdir: Path) -> float:
    return json.loads((workdir / "config.json").read_text())["optim"]["learning_rate"]


@pytest.mark.parametrize("change", ["optim.learning_rate=5e-4", "training.num_steps=5", "all"])
def test_a_command_that_trains_nothing_writes_nothing(run_copy: Path, change: str, capsys: pytest.CaptureFixture[str]):
    before = snapshot(run_copy)
    command = _changed(run_copy) if change == "all" else tiny_command("train", run_copy, f"--config.{change}")
    assert main.run(command) == 0
    said = capsys.readouterr().err
    assert "already trained to step 6" in said and " was " not in said
    assert snapshot(run_copy) == before


def test_a_command_that_is_stopped_before_its_first_step_changes_no_record(
    run_copy: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(StopRequest, "__bool__", lambda _: True)
    before = {name: data for name, data in snapshot(run_copy).items() if not name.startswith("logs/")}
    assert main.run(_changed(run_copy, "training.num_steps=8")) > 128
    assert {name: data for name, data in snapshot(run_copy).items() if not name.startswith("logs/")} == before


@pytest.mark.parametrize("ends", only(("after it",), ["before its first checkpoint", "after it"]))
def test_what_was_changed_when_is_kept_with_the_steps(
    run_copy: Path, ends: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    assert _newest_state(run_copy)["changes"] == [] and _rate(run_copy) == 1e-3
    last = 7 if ends.startswith("before") else 9
    with monkeypatch.context() as patched:
        patched.setattr("training.trainer.Trainer.step", _ending(last))
        command = _changed(run_copy, "training.num_steps=12", "training.checkpoint_every=2", "optim.decay_steps=12")
        assert main.run(command) == 2
    assert "optim.learning_rate was 0.001, is 0.0005 from here on" in capsys.readouterr().err
    kept = _newest_state(run_copy)
    if ends.startswith("before"):
        assert kept["step"] == 6 and kept["changes"] == [] and _rate(run_copy) == 1e-3
    else:
        assert kept["step"] == 8 and _rate(run_copy) == 5e-4
        changed = {change["key"]: (change["step"], change["from"], change["to"]) for change in kept["changes"]}
        assert changed == {
            "optim.decay_steps": (6, 0, 12),
            "optim.learning_rate": (6, 1e-3, 5e-4),
            "training.accumulation_steps": (6, 1, 2),
            "training.checkpoint_every": (6, 3, 2),
            "training.grad_clip": (6, 1.0, 0.5),
            "training.keep_checkpoints": (6, 3, 1),
            "training.log_every": (6, 2, 3),
            "training.num_steps": (6, 6, 12),
            "training.precision": (6, "fp32", "bf16"),
        }
    # once more, back again: what the newest checkpoint was trained with decides, and every change is kept
    capsys.readouterr()
    assert main.run(tiny_command("train", run_copy, "--config.training.num_steps=10")) == 0
    rates = [(one["step"], one["from"], one["to"]) for one in _newest_state(run_copy)["changes"]
             if one["key"] == "optim.learning_rate"]  # fmt: skip
    back = "optim.learning_rate was 0.0005, is 0.001 from here on" in capsys.readouterr().err
    assert (rates, back) == (([], False) if ends.startswith("before") else ([(6, 1e-3, 5e-4), (8, 5e-4, 1e-3)], True))
    assert _rate(run_copy) == 1e-3


def _ending(last: int) -> Callable[..., object]:
    """Trainer.step, which fails at a step."""
    from training.trainer import Trainer

    real = Trainer.step

    def step(self: Trainer, *, stop: bool = False) -> object:
        if self.state.step == last:
            raise OSError("no more")
        return real(self, stop=stop)

    return step


def test_a_checkpoint_that_was_passed_over_takes_its_changes_with_it(
    run_copy: Path, capsys: pytest.CaptureFixture[str]
):
    faster = tiny_command("train", run_copy, "--config.training.num_steps=8", "--config.optim.learning_rate=2e-3")
    assert main.run(faster) == 0 and _rate(run_copy) == 2e-3
    (run_copy / "checkpoints/step_00000008/tensors.safetensors").write_bytes(b"torn")
    capsys.readouterr()
    assert main.run(faster) == 0
    assert "optim.learning_rate was 0.001, is 0.002 from here on" in capsys.readouterr().err
    assert [change["step"] for change in _newest_state(run_copy)["changes"]] == [6, 6]


def test_an_old_checkpoint_went_by_its_config_json(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    for folder in (run_copy / "checkpoints").iterdir():
        if folder.name != "step_00000006":
            shutil.rmtree(folder)
    _forge(run_copy, lambda state: [state.pop(key) for key in ("settings", "changes")])
    slower = tiny_command("train", run_copy, "--config.training.num_steps=7", "--config.optim.learning_rate=1e-4")
    assert main.run(slower) == 0
    assert "optim.learning_rate was 0.001, is 0.0001 from here on" in capsys.readouterr().err
    changes = {change["key"]: change for change in _newest_state(run_copy)["changes"]}
    assert changes.keys() == {"optim.learning_rate", "training.num_steps"}
    assert changes["optim.learning_rate"] == {"step": 6, "key": "optim.learning_rate", "from": 1e-3, "to": 1e-4}


def _forge(workdir: Path, change: Callable[[dict], object]) -> None:
    """Write another state into the newest checkpoint, with a manifest that is right."""
    from experiment.checkpoints.folder import (
        drop_folder,
        encode,
        read_folder,
        write_folder,
    )

    newest = max((workdir / "checkpoints").glob("step_*"))
    tensors, state = read_folder(newest)
    change(state)
    step = state.pop("step")
    drop_folder(newest)
    write_folder(workdir / "checkpoints", step, encode(step, tensors, state))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("settings", []),
        ("settings", {"optim.learning_rate": None}),
        ("changes", {}),
        ("changes", [3]),
        ("changes", [{"step": 1, "key": "a", "from": 1}]),
        ("changes", [{"step": "1", "key": "a", "from": 1, "to": 2}]),
        ("changes", [{"step": 1, "key": "a", "from": 1, "to": [2]}]),
    ],
)
def test_a_forged_record_is_refused(key: str, value: object):
    assert f"its {key} are not" in (history_mismatch({"settings": {}, "changes": [], key: value}) or "")


def test_a_checkpoint_with_a_forged_record_is_passed_over(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    _forge(run_copy, lambda state: state.update({"changes": [3]}))
    assert main.run(tiny_command("train", run_copy)) == 0
    assert "step_00000006 is passed over: its changes are not steps, keys and values" in capsys.readouterr().err


def test_what_a_run_may_change_is_documented():
    from experiment.workdir import FREE_IN_TRAINING, SAID_IN_TRAINING

    page = (ROOT / "docs/training.md").read_text()
    section = page.split("## What may change", 1)[1].split("\n## ", 1)[0]
    for key in (*FREE_IN_TRAINING, *SAID_IN_TRAINING):
        assert f"`{key}" in section, key
