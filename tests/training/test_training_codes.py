"""Autoencoders with a codebook in training: restarts, resumption, micro-batches, processes, and what is reported."""

import json
import math
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from latent_runs import autoencoder_command
from tiny import last_tensors

import main
from experiment.build import named_device
from experiment.from_checkpoints import load_trained, trained_kind
from experiment.saved_config import saved_config
from likelihood import FirstStageBound
from models.first_stage import VectorQuantizer
from sde_lib import NoiseStreams

CODEBOOK, IDLE = "model.bottleneck.quantizer.codebook", "model.bottleneck.quantizer.idle"


def command(mode: str, workdir: Path, *extra: str) -> list[str]:
    return autoencoder_command(mode, workdir, "--config.model.dropout=0", *extra, config="latent/digits_vq_autoencoder")


def steps(count: int) -> str:
    return f"--config.training.num_steps={count}"


@pytest.fixture
def _restarts_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("models.first_stage.bottlenecks.VectorQuantizer", partial(VectorQuantizer, restart_after=2))


@pytest.mark.usefixtures("_restarts_soon")
def test_a_resumed_run_restarts_the_same_codes_at_the_same_places(tmp_path: Path):
    assert main.run(command("train", tmp_path / "whole")) == 0
    for count in (1, 3, 6):
        assert main.run(command("train", tmp_path / "resumed", steps(count))) == 0
        idle = last_tensors(tmp_path / "resumed")[IDLE]
        # those that nobody chose in two steps are gone after the second
        assert idle.dtype == torch.int64 and 0 <= int(idle.min()) <= int(idle.max()) < 2
    whole, resumed = last_tensors(tmp_path / "whole"), last_tensors(tmp_path / "resumed")
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_the_average_has_a_restarted_code_where_it_begins_anew(tmp_path: Path):
    assert main.run(command("train", tmp_path, steps(1))) == 0
    tensors = last_tensors(tmp_path)
    ours, averaged = tensors[CODEBOOK], tensors[CODEBOOK.replace("model.", "ema.", 1)]
    same = (ours == averaged).all(1)
    # of 64 codes around zero few are chosen in the first step, and so few have a mean of two places
    assert 40 <= int(same.sum()) < 64 and len(ours[same].unique(dim=0)) == int(same.sum())
    assert torch.equal(tensors[IDLE], torch.zeros(64, dtype=torch.int64))
    assert torch.equal(tensors[IDLE.replace("model.", "ema.", 1)], tensors[IDLE])


@pytest.mark.usefixtures("_restarts_soon")
def test_micro_batches_choose_the_codes_of_the_batch(tmp_path: Path):
    # a checkpoint whose codes have just been restarted, from which all go on for one step that restarts none
    assert main.run(command("train", tmp_path / "begun", steps(1))) == 0
    found = []
    for parts in (1, 4):
        workdir = Path(shutil.copytree(tmp_path / "begun", tmp_path / str(parts)))
        several = f"--config.training.accumulation_steps={parts}"
        assert main.run(command("train", workdir, steps(2), several)) == 0
        found.append(last_tensors(workdir))
    assert torch.equal(found[0][IDLE], found[1][IDLE]) and 0 < int(found[0][IDLE].sum()) < 64
    for name in found[0]:
        if name.startswith("model."):
            torch.testing.assert_close(found[0][name], found[1][name], rtol=1e-3, atol=2e-4)


@pytest.mark.slow
def test_two_processes_restart_what_one_with_two_micro_batches_does(killer: Killer, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(command("train", one, steps(1), "--config.training.accumulation_steps=2")) == 0
    assert run_together(killer, command("train", two, steps(1)), 2) == [0, 0]
    ours, theirs = last_tensors(one), last_tensors(two)
    same = (ours[CODEBOOK] == theirs[CODEBOOK]).all(1)
    # the others were chosen, and learned by sums of another order
    assert torch.equal(ours[IDLE], theirs[IDLE]) and int(same.sum()) >= 40
    torch.testing.assert_close(ours[CODEBOOK], theirs[CODEBOOK], rtol=0, atol=1e-4)


def test_the_report_counts_codes_over_the_split_and_the_rate_is_that_of_equally_likely_ones(tmp_path: Path):
    assert main.run(command("train", tmp_path)) == 0
    assert main.run(command("eval", tmp_path)) == 0
    report = json.loads((tmp_path / "eval" / "report.json").read_text())["autoencoder"]
    assert report["rate"] == pytest.approx(16 * math.log2(64) / 64, rel=1e-12) and report["rate_stderr"] < 1e-12
    config = saved_config(tmp_path)
    kind = trained_kind(config, tmp_path)
    model, _ = load_trained(config, tmp_path, kind, named_device("cpu"))
    from data import load_dataset

    images = load_dataset("digits", root=".", split="test")
    x0 = images.space.encode(images.stored[:10])
    terms = FirstStageBound(num_levels=17)(model, x0, noise=NoiseStreams(0, range(10)))  # pyright: ignore
    counts = np.bincount(terms.codes.flatten(), minlength=64)
    shares = counts[counts > 0] / counts.sum()
    assert report["codes_used"] == len(shares)
    assert report["code_perplexity"] == pytest.approx(math.exp(-(shares * np.log(shares)).sum()), rel=1e-9)
    # what codebook and encoder learn by is no part of the bound
    assert float(terms.penalty.min()) > 0
    assert report["bits_per_dim"] == pytest.approx(report["distortion"] + report["rate"])
