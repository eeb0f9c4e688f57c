"""Runs on an autoencoder's latents: trained, sampled and measured in pixels, resumed, and refused."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_runs import autoencoder_command, latent_command
from tiny import error, last_tensors, snapshot, tiny_command

import main
from data import load_dataset
from experiment import load_run
from experiment.latents.encoding import latent_model
from likelihood import ContinuousBound, LatentBound
from sde_lib import NoiseStreams


@pytest.fixture(scope="module")
def run(autoencoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("latents") / "run"
    assert main.run(latent_command("train", workdir, autoencoder_run)) == 0
    return workdir


def test_its_latents_are_standardized_by_the_whole_split(run: Path, autoencoder_run: Path):
    first = load_run_of(autoencoder_run)
    images = load_dataset("digits", root=".", split="train")
    with torch.no_grad():
        latent = first.encode(images.space.encode(images.images))
    z = latent.draw(torch.randn(latent.mean.shape, generator=torch.Generator().manual_seed(0)))
    space = load_run(run, device="cpu").kind.space
    seen = space.standardize(z)
    # draws of z have mean 0 and standard deviation 1 in each channel, over 1,437 images of 4x4
    assert float(seen.mean((0, 2, 3)).abs().max()) < 0.03
    assert float((seen.std((0, 2, 3)) - 1).abs().max()) < 0.03
    torch.testing.assert_close(space.encode(images.images[:3]), space.standardize(latent.mean[:3]), atol=1e-5, rtol=0)
    # grey levels of a sample are those nearest to the decoder's mean
    decoded = first.decode(latent.mean[:3]).mean
    torch.testing.assert_close(space.decode(space.encode(images.images[:3])), images.space.decode(decoded))


def load_run_of(workdir: Path):
    from experiment.build import named_device
    from experiment.from_checkpoints import load_first_stage
    from experiment.saved_config import saved_config

    config = saved_config(workdir).copy_and_resolve_references()
    config.unlock()
    config.data.first_stage = str(workdir)
    return load_first_stage(config, named_device("cpu")).model


def test_the_report_is_distortion_plus_rate_over_pixels(run: Path, autoencoder_run: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    assert main.run(latent_command("eval", workdir, autoencoder_run)) == 0
    report = json.loads((workdir / "eval" / "report.json").read_text())
    assert report["units"] == "bits/dim" and report["image_shape"] == [1, 8, 8]
    for name in ("vlb_continuous", "ode"):
        ours = report[name]
        assert ours["kind"] == "bound" and not ours["clip_x0"]
        assert ours["bits_per_dim"] == pytest.approx(ours["distortion"] + ours["rate"])
        assert f"latents, distortion {ours['distortion']:.4f}" in ours["quote"]
    # the same by hand, of the first image
    loaded = load_run(workdir, device="cpu")
    model = latent_model(loaded.model, loaded.kind.space)
    images = load_dataset("digits", root=".", split="test")
    estimator = LatentBound(ContinuousBound(num_levels=None, steps_per_image=3), num_levels=17)
    terms = estimator(model, images.space.encode(images.images[:1]), noise=NoiseStreams(0, [0]))
    found = np.load(workdir / "eval" / "per_image.npz")["vlb_continuous"][0]
    assert found == pytest.approx(float(terms.total) / (64 * math.log(2)), rel=1e-5)
    # and in a notebook
    bits = loaded.bits_per_dim(images.images[:2], likelihood="vlb_continuous", progress=False)
    assert float(bits[0]) == pytest.approx(found, rel=1e-5)


def test_another_batch_size_gives_the_same_figures_and_samples(run: Path, autoencoder_run: Path, tmp_path: Path):
    found, drawn = [], []
    for size in (3, 10):
        workdir = Path(shutil.copytree(run, tmp_path / str(size)))
        assert main.run(latent_command("eval", workdir, autoencoder_run, f"--config.eval.batch_size={size}")) == 0
        found.append(np.load(workdir / "eval" / "per_image.npz"))
        size = f"--config.sampling.batch_size={size}"
        assert main.run(latent_command("sample", workdir, autoencoder_run, size)) == 0
        drawn.append(np.load(workdir / "samples" / "samples.npz")["arr_0"])
    for name in ("vlb_continuous", "ode"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=2e-4)
    assert drawn[0].shape == (5, 8, 8, 1) and drawn[0].dtype == np.uint8
    # levels are 16 apart in pixels of 0 to 255; where a decoder's mean lies between two, rounding decides
    assert (np.abs(drawn[0].astype(int) - drawn[1]) <= 16).all()


def test_training_goes_on_to_the_same_bits_also_without_its_kept_latents(
    run: Path, autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main.run(latent_command("train", tmp_path, autoencoder_run, "--config.training.num_steps=3")) == 0
    assert "encodes 1,437 train images" in capsys.readouterr().err
    assert main.run(latent_command("train", tmp_path, autoencoder_run, "--config.training.num_steps=4")) == 0
    assert "encodes" not in capsys.readouterr().err
    (tmp_path / "latents" / "train.npz").write_bytes(b"damaged")
    assert main.run(latent_command("train", tmp_path, autoencoder_run)) == 0
    whole, resumed = last_tensors(run), last_tensors(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert (tmp_path / "latents" / "train.npz").read_bytes() == (run / "latents" / "train.npz").read_bytes()


def test_another_autoencoder_is_refused_and_nothing_is_written(
    run: Path, autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tmp_path / "other"
    assert main.run(autoencoder_command("train", other, "--config.seed=1")) == 0
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    before = snapshot(workdir)
    more = "--config.training.num_steps=9"
    assert "latents of another autoencoder" in error(capsys, latent_command("train", workdir, other, more))
    for mode in ("sample", "eval"):
        assert "latents of another autoencoder" in error(capsys, latent_command(mode, workdir, other))
    # nor where the autoencoder is right and the network another
    for wrong in ("--config.model.channels=24", "--config.data.dataset=lesions"):
        assert "error: " in error(capsys, latent_command("train", workdir, autoencoder_run, wrong, more))
    assert snapshot(workdir) == before
    # the same weights elsewhere are the same autoencoder
    moved = Path(shutil.copytree(autoencoder_run, tmp_path / "moved"))
    assert main.run(latent_command("sample", workdir, moved)) == 0


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("interpolate", ["--config.interpolate.images=0,1", "--config.interpolate.latents=q"]),
        ("edit", ["--config.edit.num_images=2"]),
        ("progressive", ["--config.progressive.num_images=3", "--config.progressive.shared_images=2"]),
    ],
)
def test_modes_that_need_no_pixels_work_on_latents(
    mode: str, options: list[str], run: Path, autoencoder_run: Path, tmp_path: Path
):
    folder = tmp_path / "out"
    assert main.run(latent_command(mode, run, autoencoder_run, f"--output={folder}", *options)) == 0
    name = {"interpolate": "interpolated", "edit": "edited", "progressive": "progressive"}[mode]
    arrays = np.load(folder / f"{name}.npz")
    assert arrays["samples"].shape[-3:] == (8, 8, 1) and arrays["samples"].dtype == np.uint8


def test_classes_and_guidance_work_on_latents(autoencoder_run: Path, tmp_path: Path):
    told = ["--config.model.class_conditional=True", "--config.model.condition_dropout=0.2"]
    assert main.run(latent_command("train", tmp_path, autoencoder_run, *told)) == 0
    guided = [*told, "--config.sampling.guidance_weight=2", "--config.sampling.classes=7"]
    assert main.run(latent_command("sample", tmp_path, autoencoder_run, *guided)) == 0
    assert np.load(tmp_path / "samples" / "samples.npz")["arr_1"].tolist() == [7] * 5


BAD = {
    ("restore",): "--mode restore measures pixels, got a model of the latents of",
    ("segment",): "--mode segment",
    ("sample", "--config.data.first_stage="): "holds a model of latents, got a config of pixels; set data.first_stage",
    ("eval", "--config.data.first_stage="): "got a config of pixels",
    ("eval", "--config.eval.likelihoods=vlb"): "ends in the probability of a grey level, which latents do not have",
    ("eval", "--config.eval.vlb_step_sampling=importance"): "importance is fitted to pixels, got latents",
    ("eval", "--config.eval.ode_dequantization=uniform"): "is of data with grey levels, got latents",
    ("interpolate", "--input=x.npz"): "is of pixels, got a model of vectors or latents",
    ("edit", "--input=x.npz"): "is of pixels, got a model of vectors or latents",
    (
        "edit",
        "--config.edit.method=finetune",
        "--config.sampling.classifier=CLASSIFIER",
    ): "differ in shape",
    ("edit", "--config.edit.method=counterfactual"): "--mode edit with counterfactual compares pixels",
}


@pytest.mark.parametrize("command", BAD)
def test_what_is_of_pixels_is_refused(
    command: tuple[str, ...],
    run: Path,
    autoencoder_run: Path,
    classifier_run: Path,
    capsys: pytest.CaptureFixture[str],
):
    mode, *options = (one.replace("CLASSIFIER", str(classifier_run)) for one in command)
    assert BAD[command] in error(capsys, latent_command(mode, run, autoencoder_run, *options))


TRAINING = {
    ("--config.model.parameterization=levels",): "is of data with grey levels, got latents",
    ("--config.training.loss=vlb_continuous",): "is of data with grey levels, got latents",
    ("--config.data.random_flip=True",): "random_flip mirrors images, but digits holds latents",
    ("--config.data.condition=lowres",): "a model of latents can be told classes and values, got data.condition=lowres",
    ("--config.data.dataset=moons",): "data.first_stage is of images, but moons holds vectors",
    ("--config.data.dataset=lesion_masks",): "is of images of [1, 8, 8] with 17 grey levels, got [1, 8, 8] with 2",
    ("--config.model.backbone=autoencoder",): "backbone autoencoder is of pixels, got a first_stage; leave it out",
}


@pytest.mark.parametrize("options", TRAINING)
def test_runs_that_cannot_be_are_refused(
    options: tuple[str, ...], autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert TRAINING[options] in error(capsys, latent_command("train", tmp_path, autoencoder_run, *options))


def test_a_first_stage_must_be_the_run_of_an_autoencoder(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert "holds no autoencoder but a unet" in error(capsys, latent_command("train", tmp_path, tiny_run))
    missing = latent_command("train", tmp_path, tmp_path / "nothing")
    assert "holds no trained run" in error(capsys, missing)
    pixels = tiny_command("sample", tiny_run, f"--config.data.first_stage={tiny_run}")
    assert "holds a model of pixels, got a config of latents" in error(capsys, pixels)
