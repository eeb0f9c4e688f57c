"""Clips in train, eval and sample; frames that are given; and a run of clips that begins as one of images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_command

import main
from data import load_dataset
from experiment.trained_run import load_run

OPTIONS = "--config.data.options=num_clips=40,num_frames=4,side=12"
SMALL = (OPTIONS, "--config.model.network.depth=1", "--config.model.num_heads=2", "--config.eval.num_images=2")
FEW = ("--config.training.num_steps=2", "--config.training.checkpoint_every=1", "--config.training.batch_size=4")


def commanded(mode: str, workdir: Path, *extra: str, config: str = "video/moving_digits_predict") -> list[str]:
    return tiny_command(mode, workdir, *SMALL, *FEW, *extra, config=config)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two frames after two that are given."""
    folder = tmp_path_factory.mktemp("clips") / "run"
    assert main.run(commanded("train", folder, "--config.data.random_flip=True")) == 0
    return folder


def test_the_frames_after_given_ones_are_measured_by_themselves(run: Path):
    assert main.run(commanded("eval", run, "--config.data.random_flip=True")) == 0
    report = json.loads((run / "eval" / "report.json").read_text())
    assert report["image_shape"] == [1, 2, 12, 12] and report["condition"] == ["paired"]
    test = load_dataset("moving_digits", root=".", split="test", options={"num_clips": 40, "num_frames": 4, "side": 12})
    after, loaded = test.after(2), load_run(run, device="cpu")
    found = loaded.bits_per_dim(after.images[:2], paired=after.paired[:2], progress=False)
    np.testing.assert_allclose(found.numpy(), np.load(run / "eval" / "per_image.npz")["vlb"], rtol=1e-6)


def test_samples_are_clips_as_npz_contact_sheet_and_gif(run: Path):
    flags = ("--config.data.random_flip=True", "--config.sampling.num_samples=3", "--config.sampling.num_steps=2")
    assert main.run(commanded("sample", run, *flags, "--config.sampling.record_trajectory=True")) == 0
    folder = run / "samples"
    drawn = np.load(folder / "samples.npz")["arr_0"]
    assert drawn.dtype == np.uint8 and drawn.shape == (3, 2, 12, 12, 1)
    given = load_dataset(
        "moving_digits", root=".", split="test", options={"num_clips": 40, "num_frames": 4, "side": 12}
    )
    pixels = np.asarray(Image.open(folder / "grid.png"))
    # a row of the sheet: two given frames, then two drawn, each 4 times as large, with 2 pixels between
    row = pixels[2:50:4, 2:].reshape(12, 4, 50, 3)[:, :, :48:4, 0]
    shown = (given.images[0, 0, :2].numpy() * (255 / 16)).round()
    np.testing.assert_array_equal(row[:, :2].swapaxes(0, 1), shown)
    np.testing.assert_array_equal(row[:, 2:].swapaxes(0, 1), drawn[0, ..., 0])
    with Image.open(folder / "grid.gif") as film:
        assert film.n_frames == 4
    assert np.load(folder / "trajectory.npz")["states"].shape == (3, 3, 1, 2, 12, 12)


@pytest.mark.parametrize("mode", ["interpolate", "restore", "edit", "progressive"])
def test_modes_of_images_refuse_clips(run: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    assert main.run(commanded(mode, run, "--config.data.random_flip=True")) == 2
    assert f"--mode {mode} is of images, got clips of 1x2x12x12; take a model of images" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.condition=masked"], "of clips a network is told given frames, class or values"),
        (["--config.data.given_frames=4"], "has clips of 4 frames of 12x12, got data.given_frames=4; give 1 to 3"),
        (["--config.data.given_frames=0"], "needs an image beside each sample"),
        (["--config.model.condition_noise_t=0.1"], "is of images, got clips, whose given frames are clean"),
        (
            ["--config.model.backbone=dit"],
            "backbone dit is of images, got clips of 1x2x12x12; set model.backbone=space_",
        ),
        (["--config.model.network.patch_size=5"], "patch_size must divide images of 12x12, got 5"),
        (["--config.data.downscale=2"], "data.downscale is of images, but moving_digits holds clips"),
        (
            ["--config.data.dataset=digits", "--config.data.options="],
            "data.given_frames is of clips, but digits holds none",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(flags, message, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    assert main.run(commanded("train", tmp_path / "run", *flags)) == 2
    said = capsys.readouterr().err
    assert message in said and "Traceback" not in said


OF_FRAMES = """
from configs.video import moving_digits


def get_config():
    config = moving_digits.get_config()
    config.model.backbone = "dit"
    del config.model.network.temporal_reach
    return config
"""


@pytest.mark.parametrize("reach", ["place", "planes"])
def test_clips_begin_with_the_weights_of_an_image_network(tmp_path: Path, reach: str):
    frames = load_dataset("moving_digits", root=".", split="train", options={"num_clips": 40, "side": 12}).as_frames()
    images = frames.images.permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "frames.npz", images=images, num_levels=17)
    of_images = ("--config.data.dataset=npz", f"--config.data.root={tmp_path / 'frames.npz'}", "--config.data.options=")
    image_run, clip_run = tmp_path / "images", tmp_path / "clips"
    (tmp_path / "frames.py").write_text(OF_FRAMES)
    assert main.run(commanded("train", image_run, *of_images, config=str(tmp_path / "frames"))) == 0
    begin = (
        f"--init-from={image_run}",
        "--config.training.num_steps=1",
        f"--config.model.network.temporal_reach={reach}",
    )
    assert main.run(commanded("train", clip_run, *begin, config="video/moving_digits")) == 0
    theirs, ours = load_run(image_run, device="cpu").model, load_run(clip_run, device="cpu", step=0).model
    x = torch.randn(2, 1, 4, 12, 12, generator=torch.Generator().manual_seed(0))
    t = torch.tensor([0.3, 0.9], dtype=torch.float64)
    with torch.no_grad():
        found = ours(x, t).x0.movedim(2, 1).flatten(0, 1)
        assert torch.equal(found, theirs(x.movedim(2, 1).flatten(0, 1), t.repeat_interleave(4)).x0)
    # all zero, it would never learn
    assert float(ours.backbone.temporal[0].attention.qkv.weight.abs().sum()) > 0
