"""Settings that change between the commands of one run."""

import json
from pathlib import Path

import pytest
import torch
from tiny import error, last_tensors, snapshot, tiny_command

import main
from training.schedules import learning_rate_factor


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
