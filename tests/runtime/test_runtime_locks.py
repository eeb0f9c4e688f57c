"""One trainer a work directory, readers beside it, and directories that cannot be locked or written in."""

import errno
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killing import Killer, check_whole
from thinning import only
from tiny import error, snapshot, tiny_command

import experiment.checkpoints.folder as files
import main
from experiment.checkpoints.store import load_newest, save_checkpoint
from runtime.locks import LockedError, locked


def test_one_process_at_a_time(tmp_path: Path):
    with locked(tmp_path / "run", "train"):
        with pytest.raises(LockedError) as refused, locked(tmp_path / "run", "train"):
            pytest.fail("it was locked")
        said = str(refused.value)
        assert str(tmp_path / "run") in said and said.endswith("or choose another --workdir") and said.isprintable()
        # something else may be done there, and the same elsewhere
        with locked(tmp_path / "run", "eval"), locked(tmp_path / "other", "train"):
            pass
    with pytest.raises(KeyError), locked(tmp_path / "run", "train"):
        raise KeyError
    with locked(tmp_path / "run", "train"):
        pass


# another trainer is refused in the next test too
@pytest.mark.parametrize("mode", only(("sample",), ["train", "eval", "sample"]))
def test_a_second_command_is_refused_and_writes_nothing(
    run_copy: Path, tmp_path: Path, mode: str, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "link").symlink_to(run_copy)
    before = snapshot(run_copy)
    # samples are written under a lock of their own folder
    inside = Path("samples" if mode == "sample" else "")
    with locked(run_copy / inside, mode):
        for path in (run_copy, tmp_path / "link", Path(os.path.relpath(run_copy))):
            said = error(capsys, tiny_command(mode, path, "--config.training.num_steps=8"))
            assert f"another process is at --mode {mode} in {path / inside}" in said
    assert snapshot(run_copy) == before
    for other in {"train", "eval", "sample"} - {mode}:
        with locked(run_copy / ("samples" if other == "sample" else ""), other):
            assert main.run(tiny_command(mode, tmp_path / "link", "--config.training.num_steps=8")) == 0


def test_a_killed_trainer_holds_nothing(killer: Killer, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    workdir = tmp_path / "run"
    endless = ("--config.training.num_steps=1000000", "--config.training.checkpoint_every=2")
    trainer = killer.start(tiny_command("train", workdir, *endless, "--config.training.keep_checkpoints=1"))
    try:
        assert killer.began(trainer)
        assert "another process is at --mode train" in error(capsys, tiny_command("train", workdir))
        while not list((workdir / "checkpoints").glob("step_*")):
            time.sleep(0.01)
        # beside a trainer that writes and deletes without pause
        for mode in ("eval", "sample", "eval"):
            assert main.run(tiny_command(mode, workdir)) == 0
        assert "passed over" not in capsys.readouterr().err
    finally:
        os.kill(trainer, signal.SIGKILL)
        assert killer.wait(trainer) == -signal.SIGKILL, killer.said()
    newest = max(check_whole(workdir / "checkpoints"))
    assert main.run(tiny_command("train", workdir, f"--config.training.num_steps={newest + 1}")) == 0


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL])
def test_without_locks_it_says_so_and_goes_on(
    tmp_path: Path, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with locked(tmp_path, "train"):
            pass
        said = capsys.readouterr().err
        assert said.count("\n") == 1 and f"{tmp_path} cannot be locked" in said and "no other process" in said


def test_a_lock_file_that_is_something_else_is_one_line(run_copy: Path, capsys: pytest.CaptureFixture[str]):
    (run_copy / ".train.lock").unlink()
    (run_copy / ".train.lock").mkdir()
    longer = tiny_command("train", run_copy, "--config.training.num_steps=8")
    assert f"{run_copy} cannot be written in (Is a directory)" in error(capsys, longer)


@pytest.fixture
def read_only(run_copy: Path) -> Iterator[Path]:
    """A run on a file system that can only be read."""
    done = [
        subprocess.run(["mount", *options, str(run_copy)], capture_output=True, text=True, check=False)
        for options in (["--bind", str(run_copy)], ["-o", "remount,bind,ro"])
    ]
    try:
        if any(one.returncode for one in done):
            pytest.skip(f"nothing can be mounted here: {done[-1].stderr.strip()}")
        yield run_copy
    finally:
        if done[0].returncode == 0:
            subprocess.run(["umount", str(run_copy)], check=True)


@pytest.mark.parametrize("mode", ["train", "eval", "sample"])
def test_a_read_only_directory_is_one_line(read_only: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    said = error(capsys, tiny_command(mode, read_only, "--config.training.num_steps=8"))
    folder = read_only / "samples" if mode == "sample" else read_only
    assert f"{folder} cannot be written in (Read-only file system); make it writable" in said


def test_a_relative_directory_and_one_behind_a_link(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "far").mkdir()
    (tmp_path / "link").symlink_to("far")
    for name in ("new/run", "link"):
        assert main.run(tiny_command("train", Path(name))) == 0
        ours, theirs = (snapshot(folder / "checkpoints") for folder in (tmp_path / name, tiny_run))
        assert ours == theirs


def _tensors(step: int) -> dict[str, torch.Tensor]:
    return {"model.w": torch.full((3,), float(step))}


@pytest.mark.parametrize("at", range(1, 4))
def test_a_reader_goes_to_the_next_one_if_its_checkpoint_is_deleted(
    tmp_path: Path, at: int, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path, step=1, tensors=_tensors(1), state={}, keep=1)
    read, seen = files.read_regular, []

    def read_late(path: Path, **options: int | None) -> bytes:
        seen.append(path)
        if len(seen) == at:
            monkeypatch.setattr(files, "read_regular", read)
            save_checkpoint(tmp_path, step=2, tensors=_tensors(2), state={}, keep=1)
        return read(path, **options)

    monkeypatch.setattr(files, "read_regular", read_late)
    found = load_newest(tmp_path, _tensors(0))
    assert found is not None and found.step == 2 and found.notes == ()
    assert torch.equal(found.tensors["model.w"], _tensors(2)["model.w"])
