"""A cluster that takes the machine away is answered with a checkpoint."""

import signal
import threading
from pathlib import Path

import pytest
import torch
from thinning import only
from tiny import last_tensors, tiny_command

import main
from runtime.signals import (
    PREEMPTION_SIGNALS,
    Interrupted,
    StopRequest,
    stop_on_signals,
)
from training.state import TrainingState
from training.trainer import StepResult, Trainer

HANDLED = (signal.SIGINT, *PREEMPTION_SIGNALS)


def _in_step(step: int, monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Send these signals to this process in that step."""
    whole_step = Trainer.step

    def send(self: Trainer, **options: bool) -> StepResult:
        result = whole_step(self, **options)
        if self.state.step == step:
            for number in numbers:
                signal.raise_signal(number)
        return result

    monkeypatch.setattr(Trainer, "step", send)


@pytest.mark.parametrize("number", only((signal.SIGTERM,), PREEMPTION_SIGNALS))
def test_a_preempted_run_saves_and_goes_on_to_the_same_bits(
    number: signal.Signals,
    tiny_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
):
    before = [signal.getsignal(one) for one in HANDLED]
    with monkeypatch.context() as patched:
        _in_step(4, patched, number)
        assert main.run(tiny_command("train", tmp_path / "run")) == 128 + number
    said = capfd.readouterr().err
    assert f"{number.name}: stopping after this step" in said
    assert "stopped at step 4, which is saved; the same command goes on from there" in said
    assert [signal.getsignal(one) for one in HANDLED] == before
    assert main.run(tiny_command("train", tmp_path / "run")) == 0
    whole, part = last_tensors(tiny_run), last_tensors(tmp_path / "run")
    assert whole.keys() == part.keys() and all(torch.equal(whole[name], part[name]) for name in whole)


def test_repeated_preemption_does_not_keep_the_checkpoint_from_being_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    save = TrainingState.save

    def hurried(self: TrainingState, *arguments: object, **options: object) -> None:
        for _ in range(3):
            signal.raise_signal(signal.SIGTERM)
        save(self, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(TrainingState, "save", hurried)
    _in_step(2, monkeypatch, signal.SIGTERM, signal.SIGTERM)
    assert main.run(tiny_command("train", tmp_path)) == 128 + signal.SIGTERM
    assert [path.name for path in (tmp_path / "checkpoints").glob("step_*")] == ["step_00000002"]


def test_the_second_ctrl_c_stops_at_once_unless_torchrun_passes_it_on():
    with stop_on_signals() as request:
        assert not request
        signal.raise_signal(signal.SIGINT)
        assert request and request.signal_number == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    with stop_on_signals(launched=True) as request:
        for _ in range(3):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        # the first says why
        assert request.signal_number == signal.SIGINT


def test_in_another_thread_nothing_is_caught_and_nothing_fails():
    seen: list[StopRequest] = []

    def work() -> None:
        with stop_on_signals() as request:
            seen.append(request)

    before = [signal.getsignal(one) for one in HANDLED]
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not seen[0] and [signal.getsignal(one) for one in HANDLED] == before


def test_an_interruption_is_a_ctrl_c_unless_it_says_otherwise():
    assert Interrupted("x").signal_number == 2 and Interrupted("x", signal.SIGTERM).signal_number == 15
    assert isinstance(Interrupted("x"), KeyboardInterrupt) and str(Interrupted("x")) == "x"
