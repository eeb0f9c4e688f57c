"""A published latent diffusion from import to its samples: the autoencoder, then the U-Net of its latents."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import Foreign, write_autoencoder, write_latent, write_unet_of_latents
from in_one_process import draw
from tiny import error

import main
from data import ImageKind, load_dataset
from experiment import load_run
from experiment.latents.encoding import latent_model
from likelihood import ContinuousBound, LatentBound
from models import VectorLatent
from models.pretrained import from_autoencoder_vq, from_diffusers
from samplers import DDIMSampler
from sde_lib import NoiseStreams


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Foreign, Foreign]:
    return write_latent(tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def first_stage(both: tuple[Foreign, Foreign], tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("imported") / "first_stage"
    assert main.run(both[0].command("import", workdir)) == 0
    return workdir


@pytest.fixture(scope="module")
def run(both: tuple[Foreign, Foreign], first_stage: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("imported") / "unet"
    assert main.run(both[1].command("import", workdir, f"--config.data.first_stage={first_stage}")) == 0
    return workdir


def test_the_autoencoder_is_measured_alone(both: tuple[Foreign, Foreign], first_stage: Path):
    assert main.run(both[0].command("eval", first_stage)) == 0
    report = json.loads((first_stage / "eval" / "report.json").read_text())
    assert report["autoencoder"]["rate"] == pytest.approx(16 * np.log2(20) / 64)
    assert report["latent_shape"] == [2, 4, 4] and 1 <= report["autoencoder"]["codes_used"] <= 20


def test_latents_have_the_published_scale(run: Path, both: tuple[Foreign, Foreign]):
    loaded = load_run(run, device="cpu")
    kind = loaded.kind
    assert isinstance(kind, ImageKind) and kind.latents is not None and kind.image_shape == (1, 8, 8)
    assert (kind.latents.mean, kind.latents.std) == ((0.0, 0.0), (2.0, 2.0))
    images = torch.randint(17, (3, 1, 8, 8), dtype=torch.uint8)
    theirs = from_autoencoder_vq(both[0].checkpoint, image_size=8)
    with torch.no_grad():
        latent = theirs.encode(2 * images.float() / 16 - 1)
    assert isinstance(latent, VectorLatent)
    # before they are quantized
    torch.testing.assert_close(loaded.encode(images), 0.5 * latent.mean, rtol=1e-4, atol=1e-6)


def test_samples_are_those_of_the_published_pair(run: Path, both: tuple[Foreign, Foreign], first_stage: Path):
    at = f"--config.data.first_stage={first_stage}"
    assert main.run(both[1].command("sample", run, at, "--config.sampling.num_samples=3")) == 0
    found = np.load(run / "samples" / "samples.npz")["arr_0"]
    model, autoencoder = from_diffusers(both[1].checkpoint), from_autoencoder_vq(both[0].checkpoint, image_size=8)
    z, _, _ = draw(DDIMSampler(num_steps=3), model, sample_shape=(2, 4, 4), num_samples=3, batch_size=3)
    with torch.no_grad():
        mean = autoencoder.decode(z / 0.5).mean
    levels = ((mean.clamp(-1, 1) + 1) * 8).round() * (255 / 16)
    assert found.shape == (3, 8, 8, 1) and found.std() > 0
    assert np.abs(found[..., 0] - levels.numpy()[:, 0]).max() <= 16
    assert (np.abs(found[..., 0] - levels.numpy()[:, 0]) < 1).mean() > 0.98


def test_a_model_of_vectors_that_are_quantized_later_has_no_likelihood(
    run: Path, both: tuple[Foreign, Foreign], first_stage: Path, capsys: pytest.CaptureFixture[str]
):
    at = f"--config.data.first_stage={first_stage}"
    assert "has no likelihood: they have no noise" in error(capsys, both[1].command("eval", run, at))
    assert not (run / "latents").exists()
    loaded = load_run(run, device="cpu")
    assert isinstance(loaded.kind, ImageKind) and loaded.kind.latents is not None
    bound = LatentBound(ContinuousBound(num_levels=None), num_levels=17)
    with pytest.raises(ValueError, match="quantized afterwards has no likelihood"):
        bound(latent_model(loaded.model, loaded.kind.latents), torch.zeros(1, 1, 8, 8))


def test_a_model_of_gaussian_latents_is_measured_and_trained_on_at_the_published_scale(tmp_path: Path):
    kl, unet = write_autoencoder(tmp_path / "kl"), write_unet_of_latents(tmp_path / "unet")
    workdir, at = tmp_path / "run", f"--config.data.first_stage={tmp_path / 'first'}"
    assert main.run(kl.command("import", tmp_path / "first")) == 0
    assert main.run(unet.command("import", workdir, at)) == 0
    measure = [at, "--config.eval.likelihoods=vlb_continuous", "--config.eval.vlb_steps_per_image=2"]
    assert main.run(unet.command("eval", workdir, *measure)) == 0
    report = json.loads((workdir / "eval" / "report.json").read_text())["vlb_continuous"]
    loaded = load_run(workdir, device="cpu")
    # (z - 0.25) 1.5
    assert isinstance(loaded.kind, ImageKind) and loaded.kind.latents is not None
    assert (loaded.kind.latents.mean, loaded.kind.latents.std) == ((0.25,) * 3, (1 / 1.5,) * 3)
    images = load_dataset("digits", root=".", split="test")
    bound = LatentBound(ContinuousBound(num_levels=None, steps_per_image=2), num_levels=17)
    model = latent_model(loaded.model, loaded.kind.latents)
    terms = bound(model, images.space.encode(images.stored[:2]), noise=NoiseStreams(0, range(2)))
    assert report["bits_per_dim"] == pytest.approx(float(terms.bits_per_dim.mean()), rel=1e-4)
    # a training on other images than theirs keeps what the project says
    assert main.run(unet.command("train", workdir, at)) == 0
    trained = load_run(workdir, device="cpu")
    assert trained.step == 2 and trained.kind.latents.std == (1 / 1.5,) * 3


def test_imports_that_cannot_be_are_one_line(
    both: tuple[Foreign, Foreign],
    first_stage: Path,
    autoencoder_run: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    def said(of: Foreign, *flags: str) -> str:
        return error(capsys, of.command("import", tmp_path / "run", *flags))

    assert "is of an autoencoder's latents; import that too" in said(both[1], "--config.data.first_stage=")
    assert "is of pixels, got data.first_stage" in said(both[0], f"--config.data.first_stage={first_stage}")
    assert "holds no trained run" in said(both[1], f"--config.data.first_stage={tmp_path / 'none'}")
    at = f"--config.data.first_stage={autoencoder_run}"
    assert "is of latents of 2x4x4, but those of" in said(both[1], at)
    small = write_autoencoder(tmp_path / "kl")
    assert main.run(small.command("import", tmp_path / "kl_run")) == 0
    assert "is of latents of 2x4x4" in said(both[1], f"--config.data.first_stage={tmp_path / 'kl_run'}")
    wide = [f"--config.data.first_stage={first_stage}", "--config.data.dataset=cifar10"]
    assert "is of images with channels 1, got 3" in said(both[1], *wide)
    assert not (tmp_path / "run").exists()
