"""A run on a folder that an earlier version began goes on with its three channels and its order of classes."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import last_tensors, tiny_command

import main
from data.sources import folder_layout
from experiment.checkpoints.folder import read_folder
from experiment.checkpoints.store import save_checkpoint

NAMES = ("1", "2", "10")


def flags(root: Path, channels: int, num_steps: int) -> list[str]:
    return [
        "--config.data.dataset=folder",
        f"--config.data.root={root}",
        "--config.data.image_size=8",
        f"--config.data.channels={channels}",
        "--config.model.class_conditional=true",
        f"--config.training.num_steps={num_steps}",
    ]


def make_old(workdir: Path) -> None:
    """Make a run as an earlier version left it: nothing is known of classes, nor were channels asked for."""
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["channels"] = 0
    (workdir / "config.json").write_text(json.dumps(config))
    root = workdir / "checkpoints"
    tensors, state = read_folder(max(root.glob("step_*")))
    del state["data"]["class_names"], state["data"]["num_classes"]
    save_checkpoint(root, step=state.pop("step"), tensors=tensors, state=state, keep=3)


def test_an_old_run_on_a_folder_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    root = tmp_path / "images"
    for k, name in enumerate(NAMES):
        for i in range(4):
            (root / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8), 60 * k + i, np.uint8)).save(root / name / f"{i}.png")
    with monkeypatch.context() as earlier:
        earlier.setattr(folder_layout, "natural_order", lambda name: name)
        assert main.run(tiny_command("train", tmp_path / "whole", *flags(root, 3, 4))) == 0
        assert main.run(tiny_command("train", tmp_path / "run", *flags(root, 3, 2))) == 0
    make_old(tmp_path / "run")
    capsys.readouterr()
    assert main.run(tiny_command("train", tmp_path / "run", *flags(root, 0, 4))) == 0
    said = capsys.readouterr().err
    assert "names no classes: they are numbered as when it was begun, by characters: 1, 10, 2" in said
    assert "images of 3x8x8" in said
    whole, resumed = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "run")
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(resumed[name], tensor), name
    # from here on the checkpoint says the order itself; measuring takes it, on both splits
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*"))
    assert json.loads((newest / "state.json").read_text())["data"]["class_names"] == ["1", "10", "2"]
    draws = ("--config.eval.num_images=0", "--config.eval.vlb_num_steps=6", "--config.eval.vlb_steps_per_image=2")
    per_image = []
    for workdir, channels in ((tmp_path / "run", 0), (tmp_path / "whole", 3)):
        assert main.run(tiny_command("eval", workdir, *flags(root, channels, 4), *draws)) == 0
        with np.load(workdir / "eval" / "per_image.npz") as arrays:
            per_image.append({name: arrays[name] for name in arrays.files})
    for name, values in per_image[0].items():
        assert np.array_equal(values, per_image[1][name]), name


def test_a_new_run_has_natural_order_and_one_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for name in NAMES:
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("L", (8, 8), i).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "images" / "2" / "photo.heic").touch()
    assert main.run(tiny_command("train", tmp_path / "run", *flags(tmp_path / "images", 0, 2))) == 0
    said = capsys.readouterr().err
    assert said.count("left out of") == 1 and "1 .heic" in said
    newest = max((tmp_path / "run" / "checkpoints").glob("step_*"))
    data = json.loads((newest / "state.json").read_text())["data"]
    assert len(data.pop("train_files")) == 64  # a folder without splits
    assert data == {"image_shape": [1, 8, 8], "num_levels": 256, "num_classes": 3, "class_names": list(NAMES),
                    "num_values": 0, "paired_channels": 0, "paired_levels": 0}  # fmt: skip
