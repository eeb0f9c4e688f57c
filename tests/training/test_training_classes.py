"""Classes that a network would be trained on are refused where nothing is of them, and the reason is said."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import error, last_tensors, snapshot, tiny_command

import main
from experiment.trained_run import load_run
from training import job

CONDITIONAL = "--config.model.class_conditional=True"


def saved(folder: Path, labels: list[int] | None, **more: object) -> list[str]:
    """Flags for 8x8 images with these labels in an npz; two of each class, so that those held out leave one."""
    rng = np.random.default_rng(0)
    arrays = {} if labels is None else {"labels": np.array(labels, np.int64)}
    images = rng.integers(0, 256, (len(labels or range(20)), 8, 8, 1), dtype=np.uint8)
    folder.mkdir()
    for split in ("train", "test"):
        np.savez(folder / f"{split}.npz", images=images, **arrays, **more)
    return ["--config.data.dataset=npz", f"--config.data.root={folder}"]


def folder_of_images(folder: Path, names: list[str]) -> list[str]:
    rng = np.random.default_rng(0)
    for k in range(20):
        place = folder / names[k % len(names)]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8), dtype=np.uint8)).save(place / f"{k}.png")
    return ["--config.data.dataset=folder", f"--config.data.root={folder}", "--config.data.image_size=8"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda path: saved(path, None), "which npz does not have; save labels beside the images, or set it to False"),
        (
            lambda path: saved(path, [0] * 20),
            "which npz does not have; save labels beside the images, or set it to False",
        ),
        (
            lambda path: folder_of_images(path, ["."]),
            "which folder does not have; put the images of each class into a folder of its own, or set it to False",
        ),
        (
            lambda path: folder_of_images(path, ["cats"]),
            "which folder does not have; put the images of each class into",
        ),
        (
            lambda path: saved(path, [0, 1, 10**6]),
            "a network of 1,000,001 classes, of which only 3 are in train (labels 0, 1, 1000000); number the labels",
        ),
        (
            lambda path: saved(path, [*range(7), 16]),
            "17 classes, of which only 8 are in train (labels 0, 1, 2, ... 16)",
        ),
    ],
)
def test_classes_that_cannot_be_trained_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], make, said):
    flags = make(tmp_path / "data")
    before = snapshot(tmp_path)
    message = error(capsys, tiny_command("train", tmp_path / "run", CONDITIONAL, *flags))
    assert "config.model.class_conditional=True" in message and said in message
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("backbone", ["unet", "adm", "ncsnpp"])
def test_no_class_is_not_promised(tmp_path: Path, capsys: pytest.CaptureFixture[str], backbone: str):
    flags = [CONDITIONAL, f"--config.model.backbone={backbone}", "--config.model.network.null_condition=True"]
    message = error(capsys, tiny_command("train", tmp_path / "run", *flags))
    assert "which it is not; set config.model.condition_dropout=0.1 instead" in message
    assert not (tmp_path / "run").exists()


def test_dropout_of_the_class_trains_a_network_without_it(tmp_path: Path):
    flags = [CONDITIONAL, "--config.model.network.null_class=True", "--config.model.condition_dropout=0.5"]
    assert main.run(tiny_command("train", tmp_path / "run", *flags, "--config.training.num_steps=1")) == 0
    assert load_run(tmp_path / "run", device="cpu").model.backbone.null_condition


def test_classes_without_images_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = saved(tmp_path / "data", [0, 1, 4, 5] * 4)
    command = tiny_command("train", tmp_path / "run", CONDITIONAL, *flags, "--config.training.num_steps=1")
    assert main.run(command) == 0
    assert "2 of 6 classes have nothing in train (2, 3), so that their samples" in capsys.readouterr().err
    assert last_tensors(tmp_path / "run")["model.embed.class_table.weight"].shape[0] == 6


def test_a_run_that_was_begun_before_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # without its classes the network is as good as any
    flags = saved(tmp_path / "data", [0, 1, 10**6])
    assert main.run(tiny_command("train", tmp_path / "plain", *flags, "--config.training.num_steps=1")) == 0
    flags = [CONDITIONAL, *saved(tmp_path / "more", None)]
    with monkeypatch.context() as earlier:
        earlier.setattr(job, "check_trained_classes", lambda config, dataset: None)
        assert main.run(tiny_command("train", tmp_path / "run", *flags, "--config.training.num_steps=1")) == 0
    assert main.run(tiny_command("train", tmp_path / "run", *flags, "--config.training.num_steps=2")) == 0
