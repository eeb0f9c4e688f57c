"""Bytes before names: each writer of the code base has on the disk what it renames, and then the new name."""

import ast
import hashlib
import os
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import ROOT, tiny_command

import main
from data.sources import cifar10
from evaluation.samples import sample_set

# all files that rename something; the tests below run each of these places
WRITERS = {
    "runtime/files.py",
    "experiment/checkpoints/folder.py",
    "evaluation/samples/sample_set.py",
    "commands/export.py",
    "data/sources/cifar10.py",
}
_ROOMS = (
    "commands",
    "data",
    "evaluation",
    "experiment",
    "likelihood",
    "models",
    "runtime",
    "samplers",
    "sde_lib",
    "training",
)


def _renames(tree: ast.AST) -> bool:
    """Tell the renaming of files, by ``os`` or a path, from ``text.replace(a, b)``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module in ("os", "shutil"):
            names = {alias.name for alias in node.names}
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            of_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
            names = {node.func.attr} if of_os or (len(node.args) == 1 and not node.keywords) else set()
        else:
            continue
        if names & {"rename", "renames", "replace", "move"}:
            return True
    return False


def test_no_other_file_renames():
    files = [path for room in _ROOMS for path in (ROOT / room).rglob("*.py")]
    found = {str(path.relative_to(ROOT)) for path in files if _renames(ast.parse(path.read_text()))}
    assert found == WRITERS, "a new writer needs a test of its order here"


class Disk:
    """A record of what a power cut would leave: what was synced, and with what content."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._synced: dict[int, Any] = {}
        self._pending: set[Path] = set()
        self.renamed: list[str] = []
        sync = os.fsync

        def synced(descriptor: int) -> None:
            sync(descriptor)
            status = os.fstat(descriptor)
            self._synced[status.st_ino] = _content(Path(os.readlink(f"/proc/self/fd/{descriptor}")))
            self._pending.discard(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        monkeypatch.setattr(os, "fsync", synced)
        for place, name in ((os, "rename"), (os, "replace"), (Path, "rename"), (Path, "replace")):
            monkeypatch.setattr(place, name, self._checked(getattr(place, name)))
        monkeypatch.setattr(sample_set, "_replace", self._checked(sample_set._replace))

    def _checked(self, rename: Callable[..., Any]) -> Callable[..., Any]:
        def checked(source: Any, target: Any) -> Any:
            caller = Path(sys._getframe(1).f_code.co_filename)
            if not caller.is_relative_to(ROOT):
                return rename(source, target)
            self.renamed.append(str(caller.relative_to(ROOT)))
            source, target = Path(source).absolute(), Path(target).absolute()
            for path in (source, *source.rglob("*")):
                assert self._synced.get(path.stat().st_ino) == _content(path), f"{path} is not on the disk yet"
            self._pending.add(target.parent.resolve())
            return rename(source, target)

        return checked

    def check(self, *writers: str) -> None:
        """See that these files renamed, and that the names are on the disk now."""
        assert set(writers) <= set(self.renamed)
        assert not [folder for folder in self._pending if folder.is_dir()]


def _content(path: Path) -> Any:
    """The names in a folder; of a file all that changes when it is written."""
    status = path.stat()
    return sorted(os.listdir(path)) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    if not Path("/proc/self/fd").is_dir():
        pytest.skip("needs /proc to tell what is synced")
    return Disk(monkeypatch)


SHORT = (
    "--config.training.num_steps=2",
    "--config.training.checkpoint_every=1",
    "--config.training.keep_checkpoints=1",
)


def test_commands_write_in_order(disk: Disk, tmp_path: Path):
    workdir = tmp_path / "run"
    assert main.run(tiny_command("train", workdir, *SHORT)) == 0
    disk.check("runtime/files.py", "experiment/checkpoints/folder.py")
    more = ("--config.sampling.png_folder=True", "--config.sampling.record_trajectory=True")
    # of another seed: those that are there are moved aside
    for seed in (0, 1):
        assert main.run(tiny_command("sample", workdir, *SHORT, *more, f"--config.seed={seed}")) == 0
    assert len(list((workdir / "samples").glob("*/png/*.png"))) == 5
    assert main.run(tiny_command("eval", workdir, *SHORT)) == 0
    disk.check(*(WRITERS - {"commands/export.py", "data/sources/cifar10.py"}))


def test_an_export_is_written_in_order(disk: Disk, run_copy: Path, tmp_path: Path):
    command = [*tiny_command("export", run_copy), "--format=diffusers", f"--output={tmp_path / 'out'}"]
    # the second one takes the place of the first
    for _ in range(2):
        assert main.run(command) == 0
    disk.check("commands/export.py")


def test_a_download_is_written_in_order(disk: Disk, tmp_path: Path):
    (tmp_path / "there").write_bytes(b"archive")
    digest = hashlib.sha256(b"archive").hexdigest()
    root = tmp_path / "data"
    cifar10._fetch(root, allowed=True, url=(tmp_path / "there").as_uri(), sha256=digest)
    assert (root / cifar10.ARCHIVE).read_bytes() == b"archive"
    disk.check("data/sources/cifar10.py")
