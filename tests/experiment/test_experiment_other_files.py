"""A folder without splits is dealt anew when files come or go: training on and measuring say so."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_command

import main
from data import load_dataset
from experiment.checkpoints.folder import read_folder
from experiment.checkpoints.store import save_checkpoint

SAID = "are not those that were trained on: those measured may have been trained on"


def command(mode: str, tmp_path: Path, num_steps: int) -> list[str]:
    return tiny_command(
        mode,
        tmp_path / "run",
        "--config.data.dataset=folder",
        f"--config.data.root={tmp_path / 'images'}",
        "--config.data.image_size=8",
        f"--config.training.num_steps={num_steps}",
        "--config.eval.num_images=0",
        "--config.eval.vlb_num_steps=2",
        "--config.eval.vlb_steps_per_image=2",
    )


def add(folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(folder / name)


def forget_files(workdir: Path) -> None:
    """Make a run as an earlier version left it."""
    tensors, state = read_folder(max((workdir / "checkpoints").glob("step_*")))
    del state["data"]["train_files"]
    save_checkpoint(workdir / "checkpoints", step=state.pop("step"), tensors=tensors, state=state, keep=1)


def test_files_that_came_or_went_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    images = tmp_path / "images"
    for i in range(12):
        add(images / "a", f"{i:02d}.png")

    def says(mode: str, num_steps: int) -> bool:
        assert main.run(command(mode, tmp_path, num_steps)) == 0
        return f"the images under {images} {SAID}" in capsys.readouterr().err

    assert not says("train", 1) and not says("eval", 1)
    add(images / "a", "12.png")
    # nor is it forgotten once training went on with the others
    assert says("train", 2) and says("eval", 2)
    forget_files(tmp_path / "run")
    assert not says("eval", 2)


def test_folders_of_splits_may_grow(tmp_path: Path):
    for name in ("train", "test"):
        add(tmp_path / name, "x.png")
    assert load_dataset("folder", root=tmp_path, split="train").train_files == ""
