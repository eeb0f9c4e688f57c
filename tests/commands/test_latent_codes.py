"""Runs on an autoencoder's codes: the same numbers by the latent path as by that of pixels."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from latent_runs import autoencoder_command, codes_command
from tiny import error, last_tensors

import main
from data import LevelSpace, load_dataset
from experiment import load_run
from experiment.estimators import build_estimators
from experiment.latents.encoding import encoded, latent_model
from experiment.saved_config import saved_config
from likelihood import LatentBound
from models import ClippedScoreModel
from runtime.processes.ranks import Ranks
from samplers import DDIMSampler
from sde_lib import NoiseStreams

MEASURED = ["--config.eval.likelihoods=vlb,vlb_continuous,ode", "--config.eval.num_images=5"]


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("codes") / "autoencoder"
    assert main.run(autoencoder_command("train", workdir, config="latent/digits_fsq_autoencoder")) == 0
    return workdir


@pytest.fixture(scope="module")
def run(autoencoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("codes") / "run"
    assert main.run(codes_command("train", workdir, autoencoder)) == 0
    assert main.run(codes_command("eval", workdir, autoencoder, *MEASURED)) == 0
    return workdir


def test_alone_the_rate_is_that_of_equally_likely_codes(autoencoder: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(autoencoder, tmp_path / "run"))
    assert main.run(autoencoder_command("eval", workdir, config="latent/digits_fsq_autoencoder")) == 0
    ours = json.loads((workdir / "eval" / "report.json").read_text())["autoencoder"]
    assert ours["rate"] == pytest.approx(32 * math.log2(5) / 64, rel=1e-12) and ours["rate_stderr"] < 1e-12


def test_its_folder_of_latents_is_a_data_set_of_both_splits(run: Path, autoencoder: Path):
    space = load_run(run, device="cpu").kind.space
    for split in ("train", "test"):
        images = load_dataset("digits", root=".", split=split)
        codes = load_dataset("npz", root=str(run / "latents"), split=split)
        assert codes.num_levels == 5 and torch.equal(codes.labels, images.labels)
        torch.testing.assert_close(LevelSpace(5).encode(codes.images), space.encode(images.images), rtol=0, atol=0)


class _OneUse(Ranks):
    """Rank 0 of two, whose keys may be used once."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        self.keys: list[str] = []

    def share(self, key: str, value: Callable[[], Any]) -> Any:
        assert key not in self.keys
        self.keys.append(key)
        return value()


def test_processes_wait_for_the_codes_of_each_split(run: Path, autoencoder: Path, tmp_path: Path):
    config, ranks = saved_config(run), _OneUse()
    config.data.first_stage = str(autoencoder)
    encoded(config, load_dataset("digits", root=".", split="train"), torch.device("cpu"), tmp_path, ranks)
    assert ranks.keys == ["latents of train", "latents of test"]
    for split in ("train", "test"):
        assert (tmp_path / "latents" / f"{split}.npz").read_bytes() == (run / "latents" / f"{split}.npz").read_bytes()


def test_the_pixel_path_on_exported_codes_gives_the_same_bits(run: Path, autoencoder: Path, tmp_path: Path):
    pixels = ["--config.data.first_stage=", "--config.data.dataset=npz", f"--config.data.root={run / 'latents'}"]
    assert main.run(codes_command("train", tmp_path, autoencoder, *pixels)) == 0
    ours, theirs = last_tensors(run), last_tensors(tmp_path)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert main.run(codes_command("eval", tmp_path, autoencoder, *pixels, *MEASURED)) == 0
    latent, pixel = (dict(np.load(one / "eval" / "per_image.npz")) for one in (run, tmp_path))
    report = json.loads((run / "eval" / "report.json").read_text())
    for name in ("vlb", "vlb_continuous", "ode"):
        # of 32 codes and of 64 pixels an image: a factor of 2, which is exact
        assert (2 * latent[f"{name}_prior"] == pixel[f"{name}_prior"]).all()
        # sums of parts that are rounded here before, there after the division by ln 2
        rate = latent[f"{name}_prior"] + latent[f"{name}_diffusion"]
        np.testing.assert_allclose(2 * rate, pixel[name], rtol=1e-14)
        assert report[name]["rate"] == pytest.approx(rate.mean(), rel=1e-14)
    # the same in nats, where nothing is divided, to the last bit
    loaded, of_pixels = load_run(run, device="cpu"), load_run(tmp_path, device="cpu")
    model = latent_model(loaded.model, loaded.kind.space)
    images = load_dataset("digits", root=".", split="test")
    codes = load_dataset("npz", root=str(run / "latents"), split="test")
    for name, estimator in build_estimators(loaded.config, of_pixels.kind).items():
        alone = estimator(of_pixels.model, of_pixels.encode(codes.images[:5]), noise=NoiseStreams(0, range(5)))
        bound = LatentBound(estimator, num_levels=17)
        terms = bound(model, images.space.encode(images.images[:5]), noise=NoiseStreams(0, range(5)))
        assert torch.equal(terms.prior, alone.prior), name
        assert torch.equal(terms.diffusion, alone.diffusion + alone.reconstruction), name
        assert terms.num_dims == 64 and alone.num_dims == 32


def test_samples_are_decoded_from_the_nearest_codes(run: Path, autoencoder: Path):
    loaded = load_run(run, device="cpu")
    space = loaded.kind.space
    codes = LevelSpace(5).encode(torch.randint(5, (6, 2, 4, 4), dtype=torch.uint8))
    noisy = codes + 0.2 * (2 * torch.rand_like(codes) - 1)
    assert torch.equal(space.decode(codes), space.decode(noisy))
    # clipped like pixels, since codes have a range
    assert isinstance(loaded.sampled_model(DDIMSampler(num_steps=2)), ClippedScoreModel)


BAD = {
    (
        "eval",
        "--config.eval.ode_dequantization=none",
        "--config.eval.likelihoods=ode",
    ): "data without grey levels, got 5",
    ("interpolate", "--input=x.npz"): "is of pixels, got a model of vectors or latents",
    ("edit", "--input=x.npz"): "is of pixels, got a model of vectors or latents",
}


@pytest.mark.parametrize("command", BAD)
def test_what_codes_cannot_do_is_refused(
    command: tuple[str, ...], run: Path, autoencoder: Path, capsys: pytest.CaptureFixture[str]
):
    mode, *options = command
    assert BAD[command] in error(capsys, codes_command(mode, run, autoencoder, *options))


def test_levels_out_of_range_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    wrong = autoencoder_command(
        "train", tmp_path, "--config.model.network.latent_levels=1", config="latent/digits_fsq_autoencoder"
    )
    assert "latent_levels must be 2 .. 256, got 1" in error(capsys, wrong)


def test_another_kind_of_latents_is_another_autoencoder(
    run: Path, autoencoder_run: Path, capsys: pytest.CaptureFixture[str]
):
    assert "latents of another autoencoder" in error(capsys, codes_command("sample", run, autoencoder_run))
