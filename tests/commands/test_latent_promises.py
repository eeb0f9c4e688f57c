"""Latents, scaling and report of a run are the same for any batch size, number of processes and device of a resume."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from latent_runs import autoencoder_command, latent_command
from tiny import error, snapshot

import experiment.from_checkpoints
import main
from data import ImageDataset
from experiment import load_run
from experiment.build import build_dataset
from experiment.latents.encoding import encoded
from experiment.latents.first_stage import first_stage_digest
from experiment.saved_config import saved_config
from models import Autoencoder, FirstStage
from runtime.processes.ranks import Ranks
from sde_lib import VP

NO_DROPOUT = "--config.model.dropout=0.0"


def _state(workdir: Path) -> dict[str, Any]:
    return json.loads((max((workdir / "checkpoints").glob("step_*")) / "state.json").read_bytes())


def _latents(workdir: Path) -> tuple[bytes, dict[str, Any]]:
    """The kept latents, and what the checkpoint says of them."""
    return (workdir / "latents" / "train.npz").read_bytes(), _state(workdir)["data"]["latents"]


def _losses(workdir: Path) -> list[float]:
    lines = (workdir / "logs" / "metrics.jsonl").read_text().splitlines()
    assert lines
    return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def run(autoencoder_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("promises") / "run"
    assert main.run(latent_command("train", workdir, autoencoder_run, NO_DROPOUT)) == 0
    return workdir


def test_the_batch_size_of_a_training_changes_neither_latents_nor_scaling(
    run: Path, autoencoder_run: Path, tmp_path: Path
):
    other = ("--config.training.batch_size=5", "--config.training.num_steps=1")
    assert main.run(latent_command("train", tmp_path, autoencoder_run, NO_DROPOUT, *other)) == 0
    assert _latents(tmp_path) == _latents(run)


@pytest.mark.slow
def test_processes_have_latents_scaling_and_losses_of_one(
    killer: Killer, run: Path, autoencoder_run: Path, tmp_path: Path
):
    assert run_together(killer, latent_command("train", tmp_path, autoencoder_run, NO_DROPOUT), 2) == [0, 0]
    assert _latents(tmp_path) == _latents(run)
    assert _losses(tmp_path) == pytest.approx(_losses(run), rel=2e-5)


@pytest.mark.slow
def test_processes_have_the_report_of_one_to_the_bit(killer: Killer, run: Path, autoencoder_run: Path, tmp_path: Path):
    alone = Path(shutil.copytree(run, tmp_path / "alone"))
    together = Path(shutil.copytree(run, tmp_path / "together"))
    assert killer.run(latent_command("eval", alone, autoencoder_run, NO_DROPOUT)) == 0
    assert run_together(killer, latent_command("eval", together, autoencoder_run, NO_DROPOUT), 2) == [0, 0]
    for name in ("report.json", "per_image.npz"):
        assert (alone / "eval" / name).read_bytes() == (together / "eval" / name).read_bytes()


@pytest.mark.slow
def test_processes_measure_an_autoencoder_as_one_does(killer: Killer, autoencoder_run: Path, tmp_path: Path):
    assert run_together(killer, autoencoder_command("train", tmp_path / "two", NO_DROPOUT), 2) == [0, 0]
    assert killer.run(autoencoder_command("train", tmp_path / "one", NO_DROPOUT)) == 0
    assert _losses(tmp_path / "two") == pytest.approx(_losses(tmp_path / "one"), rel=2e-5)
    alone = Path(shutil.copytree(autoencoder_run, tmp_path / "alone"))
    together = Path(shutil.copytree(autoencoder_run, tmp_path / "together"))
    assert killer.run(autoencoder_command("eval", alone)) == 0
    assert run_together(killer, autoencoder_command("eval", together), 2) == [0, 0]
    for name in ("report.json", "per_image.npz", "reconstructions.png"):
        assert (alone / "eval" / name).read_bytes() == (together / "eval" / name).read_bytes()


def test_a_resumed_run_keeps_its_scaling_where_latents_come_out_otherwise(
    run: Path, autoencoder_run: Path, tmp_path: Path
):
    """As on another device: latents that differ in their last digits."""
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    kept = dict(np.load(workdir / "latents" / "train.npz"))
    kept["mean"] = kept["mean"] * np.float32(1 + 1e-5)
    np.savez(workdir / "latents" / "train.npz", **kept)
    more = ("--config.training.num_steps=7", NO_DROPOUT)
    assert main.run(latent_command("train", workdir, autoencoder_run, *more)) == 0
    assert _state(workdir)["step"] == 7 and _latents(workdir)[1] == _latents(run)[1]


class _Second(Ranks):
    """A process that is told what rank 0 has."""

    def share(self, key: str, value: Any) -> Any:
        return [[0.25] * 4, [2.0] * 4]


def _config_of(run: Path, first_stage: Path) -> Any:
    config = saved_config(run)
    config.data.first_stage = str(first_stage)
    return config


def test_a_process_that_encodes_by_itself_scales_as_rank_0(run: Path, autoencoder_run: Path, tmp_path: Path):
    config, cpu = _config_of(run, autoencoder_run), torch.device("cpu")
    found = encoded(config, build_dataset(config, "train"), cpu, tmp_path, _Second(1, 2))
    assert found.latent_space.mean == (0.25,) * 4 and found.latent_space.std == (2.0,) * 4
    raw = np.load(run / "latents" / "train.npz")["mean"]
    np.testing.assert_allclose(found.latents.numpy(), (raw - 0.25) / 2, rtol=1e-5, atol=1e-6)
    # it is rank 0 that keeps them
    assert not list(tmp_path.iterdir())


def test_other_images_are_refused(
    run: Path,
    autoencoder_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    def another(config: Any, split: str, channels: int | None = None) -> Any:
        dataset = build_dataset(config, split, channels)
        assert isinstance(dataset, ImageDataset)
        dataset.images[0, 0, 0, 0] ^= 1
        return dataset

    monkeypatch.setattr("training.job.build_dataset", another)
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    before = snapshot(workdir)
    command = latent_command("train", workdir, autoencoder_run, NO_DROPOUT, "--config.training.num_steps=9")
    assert "was trained on the latents of other images; use the data that" in error(capsys, command)
    assert snapshot(workdir) == before


def test_another_option_of_the_autoencoder_is_another_autoencoder(
    run: Path, autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = Path(shutil.copytree(autoencoder_run, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text())
    assert config["model"]["norm_eps"] == 1e-6
    config["model"]["norm_eps"] = 1e-3
    (other / "config.json").write_text(json.dumps(config))
    for mode in ("train", "sample", "eval"):
        command = latent_command(mode, run, other, NO_DROPOUT, "--config.training.num_steps=9")
        assert "was trained on latents of another autoencoder" in error(capsys, command)


def test_the_digest_of_an_autoencoder_is_of_weights_and_options():
    def digest(seed: int = 0, **options: Any) -> str:
        torch.manual_seed(seed)
        small: dict[str, Any] = {"image_size": 4, "in_channels": 1, "channels": 4, "channel_mult": (1, 1)}
        return first_stage_digest(FirstStage(Autoencoder(**small, num_res_blocks=1, **options), VP()))

    assert digest() == digest() == digest(log_snr=4.0, bottleneck="fixed")
    # of the same weights, but that of the seed
    others = [digest(seed=1), digest(log_snr=5.0), digest(norm_eps=1e-5), digest(norm_groups=2)]
    assert len({digest(), *others}) == 5


@pytest.mark.parametrize("mode", ["train", "sample", "eval", "progressive"])
def test_the_autoencoder_lies_where_its_process_computes(
    mode: str, run: Path, autoencoder_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    ours, places = torch.device("cpu", 0), []
    load = experiment.from_checkpoints.load_first_stage

    def watched(config: Any, device: torch.device, **options: Any) -> Any:
        places.append(device)
        return load(config, device, **options)

    monkeypatch.setattr(Ranks, "device", lambda self, device: ours)
    for module in ("experiment.from_checkpoints", "experiment.latents.encoding"):
        monkeypatch.setattr(f"{module}.load_first_stage", watched)
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    quick = ["--config.eval.likelihoods=vlb_continuous", "--config.training.num_steps=7", NO_DROPOUT]
    quick += ["--config.progressive.num_images=3", "--config.progressive.share_at=()"]
    assert main.run(latent_command(mode, workdir, autoencoder_run, *quick)) == 0
    assert places and all(place == ours for place in places)


def test_a_run_of_another_machines_device_is_loaded_where_it_is_told(run: Path, tmp_path: Path):
    workdir = Path(shutil.copytree(run, tmp_path / "run"))
    config = json.loads((workdir / "config.json").read_text())
    (workdir / "config.json").write_text(json.dumps(config | {"device": "cuda:99"}))
    loaded = load_run(workdir, device="cpu")
    assert loaded.sample(2).shape == (2, 1, 8, 8)


@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("interpolate", ["--config.interpolate.images=0,1", "--config.interpolate.latents=q"]),
        ("edit", ["--config.edit.num_images=2"]),
        ("progressive", ["--config.progressive.num_images=3", "--config.progressive.share_at=()"]),
    ],
)
def test_reports_say_that_errors_are_of_standardized_latents(
    mode: str, options: list[str], run: Path, autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    folder = tmp_path / "out"
    command = latent_command(mode, run, autoencoder_run, NO_DROPOUT, f"--output={folder}", *options)
    assert main.run(command) == 0
    assert json.loads((folder / "report.json").read_text())["units"] == "standardized latents"
    assert "errors in units of standardized latents" in capsys.readouterr().out


def test_noise_that_is_wide_beside_latents_is_said_before_training_and_in_the_report(
    run: Path, autoencoder_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    wide = ("--config.sde.name=ve", "--config.sde.sigma_min=0.5", "--config.sde.sigma_max=50", NO_DROPOUT)
    assert main.run(latent_command("train", tmp_path, autoencoder_run, *wide)) == 0
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "the first sigma / alpha" in one]
    assert line.startswith("warning: the first sigma / alpha is 0.5, not small beside q(z | x)")
    assert "smaller sde.sigma_min" in line
    assert main.run(latent_command("eval", tmp_path, autoencoder_run, *wide)) == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())
    (line,) = [one for one in report["warnings"] if "the first sigma / alpha" in one]
    assert line.startswith("vlb_continuous, ode: the first sigma / alpha is 0.5")
    # 1/2 log(1 + r^2 / s^2) a number, of as many numbers as pixels
    kept = np.load(tmp_path / "latents" / "train.npz")
    std = np.asarray(report["latents"]["std"])[:, None, None]
    bits = 0.5 * np.log1p((0.5 * std / np.exp(kept["log_std"])) ** 2).mean() / np.log(2)
    said = float(line.split("up to ")[1].split(" bits/dim")[0])
    assert said == pytest.approx(bits, rel=0.1)
