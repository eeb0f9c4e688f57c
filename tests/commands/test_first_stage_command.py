"""An autoencoder's run: trained, measured, resumed, and refused where a score is needed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from latent_runs import autoencoder_command
from PIL import Image
from tiny import error, last_tensors, tiny_command

import main


def test_it_measures_distortion_rate_and_error_of_each_image(
    autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(autoencoder_run, tmp_path / "run"))
    assert main.run(autoencoder_command("eval", run)) == 0
    assert "distortion" in capsys.readouterr().out
    report = json.loads((run / "eval" / "report.json").read_text())
    ours = report["autoencoder"]
    assert report["num_images"] == 10 and report["latent_shape"] == [4, 4, 4]
    assert ours["bits_per_dim"] == pytest.approx(ours["distortion"] + ours["rate"])
    images = np.load(run / "eval" / "per_image.npz")
    assert images["distortion"].shape == (10,)
    bits = images["distortion"] + images["rate"]
    assert ours["bits_per_dim_stderr"] == pytest.approx(bits.std(ddof=1) / np.sqrt(10))
    assert ours["psnr"] == pytest.approx(10 * np.log10(4 / images["squared_error"].mean()))
    assert ours["rmse"] == pytest.approx(np.sqrt(images["squared_error"].mean()))
    # ten columns and two rows of 8x8, enlarged to 48, with gaps of 2
    assert Image.open(run / "eval" / "reconstructions.png").size == (10 * 50 + 2, 2 * 50 + 2)


def test_the_figures_do_not_depend_on_the_batch_size(autoencoder_run: Path, tmp_path: Path):
    found = []
    for size in (4, 7):
        workdir = Path(shutil.copytree(autoencoder_run, tmp_path / str(size)))
        assert main.run(autoencoder_command("eval", workdir, f"--config.eval.batch_size={size}")) == 0
        found.append(np.load(workdir / "eval" / "per_image.npz"))
    for name in ("distortion", "rate", "squared_error"):
        np.testing.assert_allclose(found[0][name], found[1][name], rtol=1e-5)


def test_training_goes_on_to_the_same_bits(autoencoder_run: Path, tmp_path: Path):
    assert main.run(autoencoder_command("train", tmp_path, "--config.training.num_steps=3")) == 0
    assert main.run(autoencoder_command("train", tmp_path)) == 0
    whole, resumed = last_tensors(autoencoder_run), last_tensors(tmp_path)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


@pytest.mark.parametrize("accumulation_steps", [2, 4])
def test_micro_batches_give_the_gradient_of_the_batch(autoencoder_run: Path, tmp_path: Path, accumulation_steps: int):
    # without dropout, which each micro-batch draws by itself
    plain = ("--config.model.dropout=0", "--config.training.num_steps=2")
    assert main.run(autoencoder_command("train", tmp_path / "one", *plain)) == 0
    several = f"--config.training.accumulation_steps={accumulation_steps}"
    assert main.run(autoencoder_command("train", tmp_path / "several", *plain, several)) == 0
    one, other = last_tensors(tmp_path / "one"), last_tensors(tmp_path / "several")
    assert all(torch.allclose(one[name], other[name], atol=2e-4) for name in one if name.startswith("model."))


@pytest.mark.parametrize("mode", ["sample", "interpolate", "progressive", "restore", "edit"])
def test_what_needs_a_score_is_refused(autoencoder_run: Path, mode: str, capsys: pytest.CaptureFixture[str]):
    assert "holds an autoencoder, which has no score" in error(capsys, autoencoder_command(mode, autoencoder_run))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--config.training.loss=ddpm"], "loss 'ddpm' does not train an autoencoder"),
        (["--config.model.class_conditional=True"], "backbone autoencoder is told no class"),
        (["--config.model.network.latent_channels=5"], "latent must not be larger than the image"),
        (["--config.model.network.bottleneck=kl"], "unknown bottleneck 'kl'; choices: diagonal, fixed, fsq, vq"),
        (["--config.data.dataset=moons"], "got vectors of 2 numbers"),
        (["--config.sde.name=vp_learned"], "loss 'autoencoder' trains no noise schedule"),
        (["--config.data.condition=lowres"], "cannot be told an image"),
    ],
)
def test_runs_that_cannot_be_are_refused(
    settings: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert message in error(capsys, autoencoder_command("train", tmp_path, *settings))


def test_an_autoencoders_loss_is_refused_for_other_models(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = tiny_command("train", tmp_path, "--config.training.loss=autoencoder")
    assert "loss 'autoencoder' does not train a score model" in error(capsys, wrong)
