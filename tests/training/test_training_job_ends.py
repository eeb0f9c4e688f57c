"""The end of a job of several processes when one of them fails: at once, with its reason, in one line."""

import signal
from pathlib import Path

import pytest
from killing import Killer, check_whole, run_together
from thinning import only
from tiny import tiny_command

import main
from training.trainer import StepResult, Trainer

# ranks that wait for less than a user's
HEAD = """
import errno
import os
import signal

from runtime.processes import ranks as module

module._GRACE, module._WATCH = 0.5, 0.2
RANK = os.environ["RANK"]
"""
FSDP = "--config.training.sharding=fsdp"


def _plugin(folder: Path, text: str) -> str:
    path = folder / "plugin.py"
    path.write_text(HEAD + text)
    return f"--config.plugins={path}"


def _errors(killer: Killer) -> list[str]:
    assert "Traceback" not in killer.said() and "SIGINT" not in killer.said()
    return [line for line in killer.said().replace("\r", "\n").splitlines() if line.startswith("error: ")]


NO_DATA = """
import training.job
whole = training.job.build_dataset
def build_dataset(*arguments):
    if RANK == "1":
        raise FileNotFoundError("there are no images on this machine; put them there")
    return whole(*arguments)
training.job.build_dataset = build_dataset
"""


def test_the_process_that_knows_the_reason_says_it(killer: Killer, tmp_path: Path):
    """Rank 0 sees no more than a closed connection, and is the first to see that."""
    command = tiny_command("train", tmp_path / "run", _plugin(tmp_path, NO_DATA))
    assert run_together(killer, command, 2) == [2, 2]
    assert _errors(killer) == ["error: rank 1: there are no images on this machine; put them there"]


FAILING_STEP = """
from training.trainer import Trainer
whole = Trainer._gradient
def gradient(self, draw):
    if RANK == "{rank}" and self.state.step == 2:
        raise {error}
    return whole(self, draw)
Trainer._gradient = gradient
"""


@pytest.mark.parametrize(
    ("rank", "error", "said"),
    [
        pytest.param(
            0,
            "RuntimeError('CUDA out of memory')",
            "out of memory with training.batch_size=8; raise",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            1,
            "RuntimeError('CUDA out of memory')",
            "rank 1: out of memory with training.batch_size=8; raise",
            marks=pytest.mark.slow,
        ),
        (1, "KeyError('foo')", "rank 1: KeyError: 'foo'"),
    ],
)
def test_an_error_in_a_step_of_one_process_ends_all_with_its_line(
    killer: Killer, tmp_path: Path, rank: int, error: str, said: str
):
    plugin = _plugin(tmp_path, FAILING_STEP.format(rank=rank, error=error))
    assert run_together(killer, tiny_command("train", tmp_path / "run", plugin), 2) == [2, 2]
    (line,) = _errors(killer)
    assert line.startswith(f"error: {said}")


FULL = """
import experiment.checkpoints.store
def write_folder(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")
experiment.checkpoints.store.write_folder = write_folder
"""


@pytest.mark.parametrize("sharding", only(("none",), ["none", "fsdp"]))
def test_a_full_disk_of_the_one_that_writes_ends_all_with_one_line(killer: Killer, tmp_path: Path, sharding: str):
    command = tiny_command("train", tmp_path / "run", _plugin(tmp_path, FULL), f"--config.training.sharding={sharding}")
    assert run_together(killer, command, 2) == [2, 2]
    (line,) = _errors(killer)
    assert "could not be written (No space left on device)" in line


EARLY = """
from training.trainer import Trainer
whole = Trainer.prepare
def prepare(self):
    whole(self)
    if RANK == "1":
        signal.raise_signal(signal.SIGTERM)
Trainer.prepare = prepare
"""


@pytest.mark.parametrize("sharding", only(("none",), ["none", "fsdp"]))
def test_a_signal_to_one_process_before_the_first_step_stops_all(killer: Killer, tmp_path: Path, sharding: str):
    workdir = tmp_path / "run"
    command = tiny_command("train", workdir, _plugin(tmp_path, EARLY), f"--config.training.sharding={sharding}")
    assert run_together(killer, command, 2) == [128 + signal.SIGTERM] * 2
    assert check_whole(workdir / "checkpoints") == [0]
    assert _errors(killer) == [] and "stopped at step 0, which is saved" in killer.said()


IN_PREVIEW = """
from samplers import DDIMSampler
whole = DDIMSampler.sample
def sample(self, model, *arguments, hooks=(), **options):
    def hook(state, seen=[]):
        seen.append(state)
        if len(seen) == 10 and RANK == "{rank}":
            signal.raise_signal(signal.SIGTERM)
    return whole(self, model, *arguments, hooks=[hook, *hooks], **options)
DDIMSampler.sample = sample
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_while_shards_draw_a_preview_stops_all(killer: Killer, tmp_path: Path, rank: int):
    """All of them leave the preview at the same evaluation of the network, which is one of all of them."""
    workdir = tmp_path / "run"
    plugin = _plugin(tmp_path, IN_PREVIEW.format(rank=rank))
    command = tiny_command("train", workdir, plugin, FSDP, "--config.training.sample_every=2")
    assert run_together(killer, command, 2, limit=60) == [128 + signal.SIGTERM] * 2
    assert check_whole(workdir / "checkpoints") == [3]
    assert not list((workdir / "samples").glob("*"))


def test_torchrun_may_pass_the_same_ctrl_c_to_its_only_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """In a terminal that process has heard it already."""
    whole_step = Trainer.step

    def step(self: Trainer, **options: bool) -> StepResult:
        result = whole_step(self, **options)
        if self.state.step == 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        return result

    monkeypatch.setattr(Trainer, "step", step)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert main.run(tiny_command("train", tmp_path)) == 128 + signal.SIGINT
    assert check_whole(tmp_path / "checkpoints") == [3, 4]
