import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from runtime.threads import choose_wait_policy

# before torch is imported
choose_wait_policy()

import pytest
import torch
from classifier_runs import classifier_command
from killing import Killer
from latent_runs import autoencoder_command
from shortcuts import draw_figure, take_shortcuts
from tiny import CLASSES, tiny_command

import main


@pytest.fixture(scope="session", autouse=True)
def _shortcuts() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        take_shortcuts(patched)
        yield


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are drawn; elsewhere their numbers are written in their place."""
    monkeypatch.setattr("experiment.pictures.curves.save_figure", draw_figure)


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny network on digits; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("tiny") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("experiment.pictures.curves.save_figure", draw_figure)
        assert main.run(tiny_command("train", workdir)) == 0
    return workdir


@pytest.fixture(scope="session")
def class_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of the tiny network that is told the digit; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("class") / "run"
    assert main.run(tiny_command("train", workdir, *CLASSES)) == 0
    return workdir


@pytest.fixture(scope="session")
def classifier_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny classifier of digits; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("classifier") / "run"
    assert main.run(classifier_command("train", workdir)) == 0
    return workdir


@pytest.fixture(scope="session")
def autoencoder_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of a tiny autoencoder of digits; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("autoencoder") / "run"
    assert main.run(autoencoder_command("train", workdir)) == 0
    return workdir


@pytest.fixture(scope="session", autouse=True)
def _ctrl_c_is_heard() -> None:
    """Here and in the processes that tests start: a shell's background jobs have it ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _fixed_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def _killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    server = Killer()
    yield server
    server.close()


@pytest.fixture
def killer(_killer: Killer, tmp_path: Path) -> Killer:
    """Starts whole runs that may be killed; what they print is this test's alone."""
    _killer.output = tmp_path / "output"
    _killer.output.touch()
    return _killer
