"""Latents of clips: an autoencoder of their frames, and a diffusion of its latents, in every command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_command

import main
from data import LatentSpace, VideoDataset, load_dataset
from experiment.from_checkpoints import load_trained, trained_kind
from experiment.saved_config import saved_config
from experiment.trained_run import load_run
from models import FirstStage

CLIPS = {"num_clips": 40, "num_frames": 3, "side": 12}
OPTIONS = "--config.data.options=num_clips=40,num_frames=3,side=12"
FEW = ("--config.training.num_steps=2", "--config.training.batch_size=4", "--config.eval.num_images=2")
SMALL = ("--config.model.network.depth=1", "--config.model.num_heads=2")


def commanded(mode: str, workdir: Path, *extra: str, config: str = "video/moving_digits_latent") -> list[str]:
    return tiny_command(mode, workdir, OPTIONS, *FEW, *extra, config=config)


@pytest.fixture(scope="module")
def first_stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("latent_clips") / "autoencoder"
    assert main.run(commanded("train", folder, config="video/moving_digits_autoencoder")) == 0
    return folder


def test_an_autoencoder_of_clips_is_measured_by_the_clip(first_stage: Path):
    assert main.run(commanded("eval", first_stage, config="video/moving_digits_autoencoder")) == 0
    report = json.loads((first_stage / "eval" / "report.json").read_text())
    found = report["autoencoder"]
    assert report["image_shape"] == [1, 3, 12, 12]
    assert found["distortion"] + found["rate"] == pytest.approx(found["bits_per_dim"])
    # two clips, each above its reconstruction, as rows of three frames
    assert Image.open(first_stage / "eval" / "reconstructions.png").size == (3 * 50 + 2, 4 * 50 + 2)


def test_a_diffusion_of_latent_clips_is_trained_measured_and_drawn(first_stage: Path, tmp_path: Path):
    run = tmp_path / "run"
    flags = (*SMALL, f"--config.data.first_stage={first_stage}", "--config.eval.likelihoods=vlb_continuous")
    assert main.run(commanded("train", run, *flags)) == 0
    assert main.run(commanded("eval", run, *flags)) == 0
    report = json.loads((run / "eval" / "report.json").read_text())["vlb_continuous"]
    assert report["distortion"] + report["rate"] == pytest.approx(report["bits_per_dim"])
    few = ("--config.sampling.num_samples=2", "--config.sampling.num_steps=2")
    assert main.run(commanded("sample", run, *flags, *few)) == 0
    assert np.load(run / "samples" / "samples.npz")["arr_0"].shape == (2, 3, 12, 12, 1)
    # latents are those of the autoencoder, standardized over the split
    train = load_dataset("moving_digits", root=".", split="train", options=CLIPS)
    assert isinstance(train, VideoDataset)
    latents = load_run(run, device="cpu").encode(train.images)
    assert latents.shape == (40, 4, 3, 6, 6) == np.load(run / "latents" / "train.npz")["mean"].shape
    torch.testing.assert_close(latents.mean((0, 2, 3, 4)), torch.zeros(4), rtol=0, atol=1e-5)


def test_frames_that_are_given_are_no_latents_yet(
    first_stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    told = (
        "--config.data.given_frames=1",
        "--config.data.condition=paired",
        f"--config.data.first_stage={first_stage}",
    )
    assert main.run(commanded("train", tmp_path / "run", *SMALL, *told)) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "data.given_frames=1 is of clips of pixels, got an autoencoder's latents" in said


def test_an_autoencoder_of_images_encodes_the_frames_of_clips(tmp_path: Path):
    clips = load_dataset("moving_digits", root=".", split="train", options=CLIPS)
    assert isinstance(clips, VideoDataset)
    np.savez(tmp_path / "frames.npz", images=clips.as_frames().images.permute(0, 2, 3, 1).numpy(), num_levels=17)
    of_images = ("--config.data.dataset=npz", f"--config.data.root={tmp_path / 'frames.npz'}", "--config.data.options=")
    images, run = tmp_path / "images", tmp_path / "run"
    assert main.run(commanded("train", images, *of_images, config="video/moving_digits_autoencoder")) == 0
    assert main.run(commanded("train", run, *SMALL, f"--config.data.first_stage={images}")) == 0
    theirs, loaded = saved_config(images), load_run(run, device="cpu")
    network, _ = load_trained(theirs, images, trained_kind(theirs, images), torch.device("cpu"))
    space = loaded.space
    assert isinstance(network, FirstStage) and isinstance(space, LatentSpace)
    with torch.no_grad():
        second = network.encode(clips.space.encode(clips.images[:1, :, 1])).mean
    found = loaded.encode(clips.images[:1])[:, :, 1]
    torch.testing.assert_close(found, space.standardize(second), rtol=1e-4, atol=1e-5)


def test_an_autoencoder_of_frames_is_trained_with_the_diffusion_of_its_latents(tmp_path: Path):
    network = (
        "--config.model.backbone=space_time",
        "--config.model.network.depth=1",
        "--config.model.network.patch_size=2",
    )
    flags = (*network, "--config.model.num_heads=2", "--config.data.dataset=moving_digits")
    likelihood = "--config.eval.likelihoods=vlb_continuous"
    for mode in ("train", "eval"):
        assert main.run(commanded(mode, tmp_path / "run", *flags, likelihood, config="latent/digits_joint")) == 0
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    found = report["vlb_continuous"]
    assert report["image_shape"] == [1, 3, 12, 12]
    assert found["distortion"] + found["rate"] == pytest.approx(found["bits_per_dim"])


def test_an_autoencoder_of_clips_encodes_clips_of_another_length(first_stage: Path, tmp_path: Path):
    longer, named = OPTIONS.replace("num_frames=3", "num_frames=4"), f"--config.data.first_stage={first_stage}"
    assert main.run(commanded("train", tmp_path / "run", *SMALL, named, longer)) == 0
    assert np.load(tmp_path / "run" / "latents" / "train.npz")["mean"].shape == (40, 4, 4, 6, 6)
