"""Bad steps change nothing, are counted, and end a run when there are too many in a row."""

import json
import math
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import error, last_tensors, tiny_command
from torch import Tensor

import main
from models import NetworkScoreModel
from training.bad_steps import BadSteps, bad_steps_mismatch
from training.losses import DDPMLoss

NAN, INF = math.nan, math.inf

BAD = "training.losses.base.weighted_error"


def test_what_is_not_finite_is_left_out_and_counted():
    bad_steps = BadSteps(max_bad_steps=3)
    said = [bad_steps.accepts(*pair, step=1) for pair in [(1.0, 2.0), (NAN, 1.0), (1.0, NAN), (INF, INF), (1.0, 1.0)]]
    assert said == [True, False, False, False, True] and bad_steps.skipped == 3
    # the count of those in a row began again
    assert [bad_steps.accepts(NAN, 1.0, step=1) for _ in range(3)] == [False] * 3
    with pytest.raises(FloatingPointError, match="the loss is nan at step 9, as in the 3 steps before it, which were"):
        bad_steps.accepts(NAN, 1.0, step=9)


def test_a_loss_below_0_explodes_by_its_size():
    """Bounds in bits/dim of a density can be; their running mean is of what they are beyond their sign."""
    bad_steps = BadSteps(explosion_factor=10.0)
    assert all(bad_steps.accepts((-1.0) ** step, 1.0, step=step) for step in range(300))
    assert bad_steps.accepts(-9.0, 1.0, step=300) and not bad_steps.accepts(-20.0, 1.0, step=301)


def test_none_is_left_out_where_none_may_be():
    with pytest.raises(FloatingPointError, match="the gradient norm is inf at step 1, as in the 0 steps before it"):
        BadSteps(max_bad_steps=0).accepts(1.0, INF, step=1)


def test_a_loss_explodes_beyond_a_factor_of_its_running_mean():
    """The mean of n equal losses is that loss, however early."""
    bad_steps = BadSteps(explosion_factor=100.0)
    assert bad_steps.accepts(1e9, 1.0, 1)  # there is no mean yet
    bad_steps = BadSteps(explosion_factor=100.0)
    assert all(bad_steps.accepts(2.0, 1.0, step) for step in range(50))
    assert not bad_steps.accepts(200.1, 1.0, 51) and not bad_steps.accepts(-200.1, 1.0, 52)
    assert bad_steps.accepts(199.9, 1.0, 53)
    # what was left out does not count: 50 losses of 2 and one of 199.9, by hand
    weights = [0.99**k for k in range(50, -1, -1)]
    mean = (2.0 * sum(weights[:-1]) + 199.9 * weights[-1]) / sum(weights)
    assert bad_steps.accepts(mean * 99.99, 1.0, 54)
    assert BadSteps(explosion_factor=0.0).accepts(1e30, 1.0, 1)


def test_counts_go_on_where_they_were():
    one, two = BadSteps(explosion_factor=10.0), BadSteps(explosion_factor=10.0)
    for step in range(60):
        one.accepts(NAN if step % 20 == 19 else 1.0 + step, 1.0, step)
    state = json.loads(json.dumps(one.state()))
    assert bad_steps_mismatch(state) is None
    two.restore(state)
    for loss in (300.0, 1e3, 200.0, NAN, 400.0):
        assert one.accepts(loss, 1.0, 61) == two.accepts(loss, 1.0, 61)
    assert one.state() == two.state()
    # so that a run which is stopped after each bad step ends, too
    assert not one.accepts(NAN, 1.0, 62) and one.state()["in_a_row"] == 1
    last = BadSteps(explosion_factor=10.0, max_bad_steps=1)
    last.restore(one.state())
    with pytest.raises(FloatingPointError, match="as in the 1 steps before it"):
        last.accepts(NAN, 1.0, 63)


@pytest.mark.parametrize("state", [[], {"skipped": 1}, {"skipped": 1, "in_a_row": 0, "count": 2, "mean": NAN}])
def test_counts_that_cannot_be_are_named(state: object):
    assert bad_steps_mismatch(state) == "its entry guard does not hold the counts of skipped steps"
    assert bad_steps_mismatch(None) is None


def _sometimes_bad(monkeypatch: pytest.MonkeyPatch) -> list[list[Tensor]]:
    """Spoil the third and the fourth step, once by its value, once by its gradient alone; every step's weights."""
    whole, weights = DDPMLoss.__call__, []

    def spoiled(self: DDPMLoss, model: NetworkScoreModel, *arguments: Any, **options: Any) -> Tensor:
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
        values = whole(self, model, *arguments, **options)
        if len(weights) == 3:
            return values * math.nan
        # sqrt has value 0 and slope infinity at 0
        return values + (0.0 * values).sqrt() if len(weights) == 4 else values

    monkeypatch.setattr(DDPMLoss, "__call__", spoiled)
    return weights


def test_bad_steps_change_no_weight_and_are_passed_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    weights = _sometimes_bad(monkeypatch)
    command = tiny_command(
        "train", tmp_path, "--config.training.checkpoint_every=1",
        "--config.training.keep_checkpoints=9", "--config.training.log_every=6",
    )  # fmt: skip
    assert main.run(command) == 0
    said = capsys.readouterr().err
    assert said.count("is skipped") == 2
    assert "step 3 is skipped: loss nan" in said and "step 4 is skipped: loss " in said
    for kept in weights[3:5]:
        assert all(torch.equal(one, other) for one, other in zip(weights[2], kept, strict=True))
    assert any(not torch.equal(one, other) for one, other in zip(weights[4], weights[5], strict=True))
    # none of a step that was skipped
    saved = sorted((tmp_path / "checkpoints").glob("step_*"))
    assert [int(folder.name[5:]) for folder in saved] == [1, 2, 5, 6]
    states = [json.loads((folder / "state.json").read_text()) for folder in saved]
    assert [state["guard"]["skipped"] for state in states] == [0, 0, 2, 2]
    assert [state["ema_updates"] for state in states] == [1, 2, 3, 4]
    (record,) = map(json.loads, (tmp_path / "logs/metrics.jsonl").read_text().splitlines())
    # of the four good ones
    assert record["skipped_steps"] == 2 and math.isfinite(record["loss"])


def test_a_checkpoint_that_fell_on_a_bad_step_is_made_up_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _sometimes_bad(monkeypatch)
    assert main.run(tiny_command("train", tmp_path)) == 0
    assert sorted(folder.name for folder in (tmp_path / "checkpoints").iterdir()) == ["step_00000005", "step_00000006"]


def test_a_run_of_bad_steps_alone_is_no_success(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "training.losses.base.weighted_error", lambda *_, **__: torch.full((8,), math.nan).requires_grad_()
    )
    said = error(capsys, tiny_command("train", tmp_path))
    assert "nothing was trained: every step up to 6 was skipped; correct what makes the loss or its" in said
    assert not list(tmp_path.glob("checkpoints/step_*"))


def test_too_many_bad_steps_keep_the_last_good_checkpoint(
    run_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    many = (
        "--config.training.num_steps=100", "--config.training.max_bad_steps=4", "--config.training.log_every=1",
        "--config.training.checkpoint_every=1", "--config.training.keep_checkpoints=1",
    )  # fmt: skip
    before = last_tensors(run_copy)
    with monkeypatch.context() as patched:
        patched.setattr(
            "training.losses.base.weighted_error", lambda *_, **__: torch.full((8,), math.nan).requires_grad_()
        )
        said = error(capsys, tiny_command("train", run_copy, *many))
    assert "the loss is nan at step 11, as in the 4 steps before it" in said and "last checkpoint" in said
    # no weights at which the loss is nan have taken its place
    after = last_tensors(run_copy)
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    newest = max((run_copy / "checkpoints").glob("step_*"))
    assert json.loads((newest / "state.json").read_text())["guard"]["in_a_row"] == 0
    # and what the line says can be done
    slower = ("--config.optim.learning_rate=1e-4", "--config.training.grad_clip=0.5", "--config.training.num_steps=8")
    assert main.run(tiny_command("train", run_copy, *many, *slower)) == 0
    went_on = capsys.readouterr().err
    assert "continues from step 6" in went_on
    assert "optim.learning_rate was 0.001, is 0.0001 from here on" in went_on
    assert "training.grad_clip was 1.0, is 0.5 from here on" in went_on
    record = json.loads((run_copy / "logs/metrics.jsonl").read_text().splitlines()[-1])
    assert record["step"] == 8 and record["learning_rate"] == pytest.approx(1e-4)


def test_a_run_stopped_after_bad_steps_alone_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    """Its optimizer has no state yet."""
    calls = []

    def spoiled(*_: object, **__: object) -> torch.Tensor:
        calls.append(None)
        if len(calls) == 3:
            signal.raise_signal(signal.SIGINT)
        return torch.full((8,), math.nan).requires_grad_()

    with monkeypatch.context() as patched:
        patched.setattr(BAD, spoiled)
        assert main.run(tiny_command("train", tmp_path)) == 130
    said = error(capsys, tiny_command("train", tmp_path, "--config.training.num_steps=3"))
    assert "nothing was trained: every step up to 3 was skipped" in said
    capsys.readouterr()
    assert main.run(tiny_command("train", tmp_path)) == 0
    assert "continues from step 3" in capsys.readouterr().err
    state = json.loads((tmp_path / "checkpoints/step_00000006/state.json").read_text())
    assert (state["guard"]["skipped"], state["ema_updates"]) == (3, 3)
