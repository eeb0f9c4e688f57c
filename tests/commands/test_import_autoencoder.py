"""A published autoencoder from import to its measurement, for images of any size, through the command line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from foreign_checkpoints import Foreign, write_autoencoder
from PIL import Image
from safetensors.torch import load_file
from tiny import error

import main
from data import ImageDataset, load_dataset
from likelihood import FirstStageBound
from models.pretrained import from_autoencoder_kl
from sde_lib import NoiseStreams


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Foreign:
    return write_autoencoder(tmp_path_factory.mktemp("autoencoder"))


@pytest.fixture(scope="module")
def run(foreign: Foreign, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("imported") / "run"
    assert main.run(foreign.command("import", workdir)) == 0
    return workdir


def test_the_work_directory_holds_the_weights_and_what_the_project_says_of_latents(foreign: Foreign, run: Path):
    saved = json.loads((run / "config.json").read_text())
    assert (saved["source"]["latent_scale"], saved["source"]["latent_shift"]) == (1.5, 0.25)
    assert saved["source"]["checkpoint"] == str(foreign.checkpoint)
    # the size is that of the data, not the checkpoint's 64
    network = {"image_size": 8, "in_channels": 1, "latent_channels": 3, "latent_convs": False}
    assert saved["model"]["backbone"] == "autoencoder" and saved["model"]["norm_eps"] == 1e-6
    assert saved["model"]["network"].items() >= {**network, "bottleneck": "diagonal", "pixels": "gaussian"}.items()
    weights = from_autoencoder_kl(foreign.checkpoint).backbone.state_dict()
    tensors = load_file(run / "checkpoints" / "step_00000000" / "tensors.safetensors")
    assert all(torch.equal(tensors[f"ema.{name}"], weights[name]) for name in weights)


def test_eval_gives_the_imported_model_s_distortion_rate_and_error(
    foreign: Foreign, run: Path, capsys: pytest.CaptureFixture[str]
):
    assert main.run(foreign.command("eval", run)) == 0
    assert "psnr" in capsys.readouterr().out
    report = json.loads((run / "eval" / "report.json").read_text())
    images = load_dataset("digits", root=".", split="test")
    assert isinstance(images, ImageDataset)
    x0 = images.space.encode(images.stored[:2])
    model = from_autoencoder_kl(foreign.checkpoint, image_size=8)
    terms = FirstStageBound(num_levels=17)(model, x0, noise=NoiseStreams(0, range(2)))
    bits = {"distortion": terms.distortion, "rate": terms.rate, "bits_per_dim": terms.total}
    for name, nats in bits.items():
        assert report["autoencoder"][name] == pytest.approx(float(nats.mean()) / (64 * np.log(2)), rel=1e-5)
    mean_square = float(terms.squared_error.mean())
    assert report["autoencoder"]["psnr"] == pytest.approx(10 * np.log10(4 / mean_square), rel=1e-5)
    assert report["latent_shape"] == [3, 4, 4] and report["step"] == 0


def test_training_goes_on_from_the_weights_and_learns_the_scale(foreign: Foreign, run: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    assert main.run(foreign.command("train", workdir)) == 0
    tensors = load_file(workdir / "checkpoints" / "step_00000002" / "tensors.safetensors")
    assert 0 < float(tensors["model.pixel_log_std"].abs()) < 0.01
    # what the project says of latents is of the weights that the run began with
    assert json.loads((workdir / "config.json").read_text())["source"]["latent_scale"] == 1.5


@pytest.mark.parametrize(("asked", "shape"), [("0", [12, 20]), ("16,8", [16, 8])])
def test_images_of_a_folder_are_taken_at_their_size_or_at_the_config_s(
    foreign: Foreign, asked: str, shape: list[int], tmp_path: Path
):
    (tmp_path / "images").mkdir()
    for k, image in enumerate(np.random.default_rng(0).integers(0, 256, (20, 12, 20), dtype=np.uint8)):
        Image.fromarray(image).save(tmp_path / "images" / f"{k}.png")
    data = ["--config.data.dataset=folder", f"--config.data.root={tmp_path / 'images'}"]
    data += [f"--config.data.image_size={asked}", "--config.data.channels=1"]
    for mode in ("import", "eval"):
        assert main.run(foreign.command(mode, tmp_path / "run", *data)) == 0
    report = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())
    assert report["image_shape"] == [1, *shape]
    assert report["latent_shape"] == [3, shape[0] // 2, shape[1] // 2]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.dataset=cifar10"], "is of images with channels 1, got 3 by config.data.dataset=cifar10"),
        (["--config.data.dataset=moons"], "is of images, but moons holds vectors; set data.dataset"),
        (["--config.data.dataset=digit"], "unknown dataset 'digit'"),
        (["--config.data.dataset=folder", "--config.data.image_size=9"], "image_size 9 cannot be halved 1 times"),
        (["--config.source.config=--scale_factor 2"], "is of no use: "),
        (
            ["--config.source.weights=raw"],
            "config.source.weights=raw is for latent_diffusion and score_sde alone, got autoencoder_kl",
        ),
        (["--config.training.loss=ddpm"], "loss 'ddpm' does not train an autoencoder"),
        (["--source=diffusers"], "--source=diffusers contradicts config.source.name=autoencoder_kl"),
    ],
)
def test_imports_that_cannot_be_are_one_line(
    foreign: Foreign, flags: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in error(capsys, foreign.command("import", tmp_path / "run", *flags))
    assert not (tmp_path / "run").exists()
