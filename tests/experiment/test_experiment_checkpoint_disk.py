"""A disk that is full or fails: checkpoints stay complete or absent, the newest good one is kept, one line says why."""

import errno
import os
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import check_whole
from tiny import error, last_tensors, tiny_command
from torch import Tensor

import experiment.checkpoints.folder as files
import main
from experiment.checkpoints.store import CheckpointWriteError, load_newest, save_checkpoint
from training.log import TrainingLog


def _tensors(step: int, size: int = 50) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return {"model.w": torch.randn(size, generator=generator), "optim.0.step": torch.tensor(float(step))}


def _save(root: Path, step: int, keep: int = 10) -> Path:
    return save_checkpoint(root, step=step, tensors=_tensors(step), state={"note": step}, keep=keep)


class Faults:
    """Lets operations on files fail: those from ``first`` on, ``count`` of them.

    Of many, those that take a checkpoint away do not fail, which need no room.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, first: int, count: int, code: int) -> None:
        self.first, self.last, self.code, self.seen, self.failed = first, first + count - 1, code, 0, 0
        whole_write = files.write_synced

        def torn_write(path: Path, chunks: Iterable[bytes]) -> None:
            data = b"".join(chunks)
            self.tick(path)
            path.write_bytes(data[: len(data) // 2])
            self.tick(path)
            whole_write(path, [data])

        monkeypatch.setattr("experiment.checkpoints.folder.write_synced", torn_write)
        for owner, name in ((os, "fsync"), (Path, "mkdir"), (Path, "rename")):
            monkeypatch.setattr(owner, name, self._failing(getattr(owner, name)))

    def _failing(self, operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self.first == self.last or ".dropped_" not in str(args[-1]):
                self.tick(args[0])
            return operation(*args, **kwargs)

        return call

    def tick(self, what: object) -> None:
        self.seen += 1
        if self.first <= self.seen <= self.last:
            self.failed += 1
            raise OSError(self.code, os.strerror(self.code), str(what))


CODES = [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS]


@pytest.mark.parametrize("count", [1, 10**9], ids=["one operation", "all from there on"])
@pytest.mark.parametrize("code", CODES, ids=[errno.errorcode[code] for code in CODES])
def test_whichever_operation_fails_checkpoints_are_complete_or_absent(
    tmp_path: Path, code: int, count: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    outcomes = set()
    for first in range(1, 100):
        root = tmp_path / str(first)
        for step in (1, 2):
            _save(root, step)
        capsys.readouterr()
        with monkeypatch.context() as patch:
            faults = Faults(patch, first, count, code)
            try:
                _save(root, 3, keep=2)
                written = True
            except CheckpointWriteError as failure:
                written = False
                message = str(failure)
        steps, said = check_whole(root), capsys.readouterr().err
        assert not [path.name for path in root.iterdir() if path.name.startswith(".")], first
        found = load_newest(root, {"model.w": torch.zeros(50)})
        assert found is not None and found.notes == () and found.step == steps[-1]
        assert torch.equal(found.tensors["model.w"], _tensors(found.step)["model.w"])
        # written, if nothing failed that it needs, or the second try did not; else the one before it is there
        assert found.step == 3 or not written
        full = code in (errno.ENOSPC, errno.EDQUOT)
        outcomes.add((written, faults.failed > 0, tuple(steps)))
        if not written:
            assert f"checkpoint {root / 'step_00000003'} could not be written ({os.strerror(code)}" in message
            assert f"; step_{found.step:08d} is kept; " in message and message.isprintable()
            assert re.search(r"it needs 0\.0 MB and \d+\.\d MB are free", message)
            assert ("free some space" in message) == full
            # older ones are given up only for room, and that is said
            assert (1 in steps) == ("only step_" not in said) and (1 in steps or full)
        if faults.failed == 0:
            assert steps == [2, 3]
            break
        # what failed once can be done again, to the same bits
        assert _save(root, 3, keep=1).is_dir() and check_whole(root) == [3]
    else:
        pytest.fail("an operation always failed")
    if count > 1:
        assert (False, True, (2,) if code in (errno.ENOSPC, errno.EDQUOT) else (1, 2)) in outcomes
    elif code in (errno.ENOSPC, errno.EDQUOT):
        # one failure never costs the checkpoint: there is room after the older ones are dropped
        assert {written for written, _, _ in outcomes} == {True} and (True, True, (2, 3)) in outcomes
    else:
        assert (False, True, (1, 2)) in outcomes


def test_the_newest_good_one_is_kept_and_not_the_newest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for step in (1, 2, 3):
        _save(tmp_path, step)
    # of another architecture, with good checksums: no run of this kind goes on from it
    save_checkpoint(tmp_path, step=4, tensors={"model.other": torch.zeros(2)}, state={}, keep=10)
    damaged = tmp_path / "step_00000003" / "tensors.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    # newer than what is written: it was passed over, and is not looked at
    shutil.copytree(tmp_path / "step_00000001", tmp_path / "step_00000009")
    with monkeypatch.context() as patch:
        Faults(patch, 1, 10**9, errno.ENOSPC)
        with pytest.raises(CheckpointWriteError, match="step_00000002 is kept; free some space"):
            _save(tmp_path, 5)
    left = sorted(path.name for path in tmp_path.iterdir())
    assert left == [f"step_{step:08d}" for step in (2, 3, 4, 9)]


def test_without_any_checkpoint_it_says_that_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as patch:
        Faults(patch, 1, 10**9, errno.ENOSPC)
        with pytest.raises(CheckpointWriteError, match="there is no good one before it; free some space"):
            _save(tmp_path / "new", 5)
    assert not (tmp_path / "new" / "step_00000005").exists()


def test_ctrl_c_while_writing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _save(tmp_path, 1)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("runtime.files.os.fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        _save(tmp_path, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


@contextmanager
def _longest_file(size: int) -> Iterator[None]:
    """As a file system that has room for ``size`` bytes in a file; not for the superuser alone."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_files_that_may_not_be_so_long(run_copy: Path, tiny_run: Path, capsys: pytest.CaptureFixture[str]):
    longer = tiny_command("train", run_copy, "--config.training.num_steps=8")
    with _longest_file(100_000):
        said = error(capsys, longer)
    assert (
        "step_00000008 could not be written (File too large): it needs 1." in said and "step_00000006 is kept" in said
    )
    assert check_whole(run_copy / "checkpoints") == [3, 6]
    assert not list((run_copy / "checkpoints").glob(".*"))
    assert main.run(longer) == 0 and check_whole(run_copy / "checkpoints") == [3, 6, 8]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system in memory of so many KiB, or of another size when asked again."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = []

    def mount(size: int) -> Path:
        options = f"size={size}k" + (",remount" if mounted else "")
        try:
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as missing:
            pytest.skip(f"nothing can be mounted here: {missing}")
        if done.returncode:
            pytest.skip(f"nothing can be mounted here: {done.stderr.strip()}")
        mounted.append(size)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_is_full(tiny_run: Path, small_disk: Callable[[int], Path], capsys: pytest.CaptureFixture[str]):
    folder = next((tiny_run / "checkpoints").iterdir())
    one = sum(path.stat().st_size for path in folder.iterdir()) // 1024
    workdir = small_disk(one * 5 // 2) / "run"
    every = [
        tiny_command("train", workdir, f"--config.training.{key}") for key in ("checkpoint_every=1", "num_steps=9")
    ]
    # room for two: the third takes the place of the first, and the run goes on
    assert main.run(every[0]) == 0
    said = capsys.readouterr().err
    assert "the disk is full: of the checkpoints in" in said and "only step_00000002 is kept to make room" in said
    assert check_whole(workdir / "checkpoints") == [5, 6]
    whole = last_tensors(tiny_run)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in last_tensors(workdir).items())
    # room for one: the second cannot be written, the first is kept
    shutil.rmtree(workdir / "checkpoints" / "step_00000005")
    small_disk(one * 3 // 2)
    said = error(capsys, every[1])
    assert "step_00000009 could not be written (No space left on device): it needs" in said
    assert "step_00000006 is kept; free some space, then the same command goes on from there" in said
    assert check_whole(workdir / "checkpoints") == [6] and not list((workdir / "checkpoints").glob(".*"))
    small_disk(one * 4)
    assert main.run(every[1]) == 0 and check_whole(workdir / "checkpoints") == [6, 9]


def test_logs_that_cannot_be_written_do_not_end_a_run(
    tiny_run: Path, run_copy: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for name in ("append_whole", "write_atomically"):
        monkeypatch.setattr(f"training.log.{name}", full)
    for name in ("curves", "grids"):
        monkeypatch.setattr(f"experiment.pictures.{name}.write_atomically", full)
    longer = tiny_command("train", run_copy, "--config.training.num_steps=10", "--config.training.sample_every=5")
    assert main.run(longer) == 0
    said = capsys.readouterr().err
    for what in ("metrics.jsonl", "TensorBoard's events", "pictures"):
        assert (
            said.count(f"{what} cannot be written in {run_copy} (No space left on device); the training goes on") == 1
        )
    assert "Traceback" not in said and "Exception" not in said
    assert max(path.name for path in (run_copy / "checkpoints").iterdir()) == "step_00000010"


def test_numbers_that_were_missed_are_written_when_there_is_room_again(tmp_path: Path):
    numbers = {"grad_norm": 1.0, "images_per_second": 4.0}
    with closing(TrainingLog(tmp_path, start=0, num_steps=9)) as log:
        log.scalars({"step": 1, "loss": 0.5, **numbers})
        whole = (tmp_path / "logs" / "metrics.jsonl").read_bytes()
        # room for half a line more
        with _longest_file(len(whole) + 20):
            log.scalars({"step": 2, "loss": 0.25, **numbers})
            assert (tmp_path / "logs" / "metrics.jsonl").read_bytes() == whole
            log.samples(2, np.zeros((16, 16, 3), dtype=np.uint8))
            log.learning_curve()
        log.scalars({"step": 3, "loss": 0.125, **numbers})
    lines = (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()
    assert [line.split(", \"grad")[0] for line in lines] == [
        '{"step": 1, "loss": 0.5', '{"step": 2, "loss": 0.25', '{"step": 3, "loss": 0.125'
    ]  # fmt: skip


def test_tensorboard_reads_what_is_logged_and_forgets_what_a_killed_run_logged(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    numbers = {"grad_norm": 1.0, "images_per_second": 2.0}
    with closing(TrainingLog(tmp_path, start=0, num_steps=9)) as log:
        log.scalars({"step": 2, "loss": 0.5, **numbers})
        log.scalars({"step": 4, "loss": 9.0, **numbers})
    with closing(TrainingLog(tmp_path, start=3, num_steps=9)) as log:
        log.scalars({"step": 4, "loss": 0.25, **numbers})
        log.samples(4, np.zeros((16, 16, 3), dtype=np.uint8))
    board = EventAccumulator(str(tmp_path / "logs"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(2, 0.5), (4, 0.25)]
    assert [event.value for event in board.Scalars("train/images_per_second")] == [2.0, 2.0]
    (picture,) = board.Images("samples")
    assert picture.step == 4 and picture.encoded_image_string.startswith(b"\x89PNG")
    assert [line.split(", \"grad")[0] for line in (tmp_path / "logs" / "metrics.jsonl").read_text().splitlines()] == [
        '{"step": 2, "loss": 0.5', '{"step": 4, "loss": 0.25'
    ]  # fmt: skip


def test_damaged_metrics_are_left_out(tmp_path: Path):
    (tmp_path / "logs").mkdir()
    strange = [b"3", b'{"step": 1e999, "loss": 1}', b"[" * 100_000, b'{"step": 1, "loss": "x"}', b"\xff", b'{"step": 2']
    good = b'{"step": 1, "loss": 0.5}'
    (tmp_path / "logs" / "metrics.jsonl").write_bytes(b"\n".join([*strange, good]))
    with closing(TrainingLog(tmp_path, start=5, num_steps=9)):
        pass
    assert (tmp_path / "logs" / "metrics.jsonl").read_bytes() == good + b"\n"
    (tmp_path / "logs" / "metrics.jsonl").unlink()
    # a pipe that nobody reads does not stop a run
    os.mkfifo(tmp_path / "logs" / "metrics.jsonl")
    with closing(TrainingLog(tmp_path, start=5, num_steps=9)):
        pass
    assert (tmp_path / "logs" / "metrics.jsonl").is_file()
