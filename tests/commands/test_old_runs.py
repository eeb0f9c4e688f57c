"""Work directories of an earlier version load, sample, measure and go on as they did then."""

import itertools
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from thinning import only
from tiny import ROOT

import main

FIXTURES = ROOT / "tests" / "fixtures" / "old_runs"
SHORT = (
    "--config.device=cpu",
    "--config.training.num_steps=20",
    "--config.training.batch_size=16",
    "--config.training.checkpoint_every=20",
    "--config.training.log_every=1",
    "--config.training.sample_every=0",
    "--config.optim.warmup_steps=2",
    "--config.sampling.num_steps=10",
    "--config.sampling.num_samples=4",
    "--config.sampling.batch_size=4",
    "--config.eval.likelihoods=vlb,ode",
    "--config.eval.num_images=4",
    "--config.eval.batch_size=4",
)
SMALL = (
    "--config.model.channels=8",
    "--config.model.channel_mult=1,1",
    "--config.model.num_res_blocks=1",
    "--config.model.attention_resolutions=4",
)
IMPORTED = ("--config.data.dataset=digits", "--config.data.image_size=0", "--config.data.channels=0")
# A small network of each kind; tests/fixtures/old_runs/README.md says what made them.
RUNS = {
    "vp_digits": ("vp/digits", SMALL),
    "ve_digits": ("ve/digits", SMALL),
    "vp_digits_hybrid": ("vp/digits_hybrid", SMALL),
    "edm": ("pretrained/edm_cifar10", IMPORTED),
}


def command(name: str, mode: str, workdir: Path, *extra: str) -> list[str]:
    config, options = RUNS[name]
    return [
        f"--config={ROOT / 'configs' / (config + '.py')}", f"--mode={mode}", f"--workdir={workdir}",
        *SHORT, *options, *extra,
    ]  # fmt: skip


def copy_of(name: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(FIXTURES / name, tmp_path / "run"))


def losses(workdir: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (workdir / "logs" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "case",
    only([("vp_digits_hybrid", "vlb"), ("edm", "ode")], itertools.product(RUNS, ("vlb", "ode"))),
)
def test_samples_and_bits_per_dim_are_those_of_then(case: tuple[str, str], tmp_path: Path):
    name, likelihoods = case
    old_run, expected = copy_of(name, tmp_path), FIXTURES / name / "expected"
    assert main.run(command(name, "sample", old_run)) == 0
    with np.load(old_run / "samples" / "samples.npz") as ours, np.load(expected / "samples.npz") as then:
        # a pixel at the border of two levels may round to the other
        assert np.abs(ours["arr_0"].astype(int) - then["arr_0"]).max() <= 1
    assert main.run(command(name, "eval", old_run, f"--config.eval.likelihoods={likelihoods}")) == 0
    report = json.loads((old_run / "eval" / "report.json").read_text())[likelihoods]
    then = json.loads((expected / "bits_per_dim.json").read_text())[likelihoods]
    assert {term: report[term] for term in then} == pytest.approx(then, abs=5e-4)


@pytest.mark.parametrize("name", only(("vp_digits_hybrid", "edm"), RUNS))
def test_training_goes_on_as_it_did(name: str, tmp_path: Path):
    old_run, step = copy_of(name, tmp_path), 0 if name == "edm" else 20
    assert main.run(command(name, "train", old_run, f"--config.training.num_steps={step + 4}")) == 0
    then = json.loads((FIXTURES / name / "expected" / "losses.json").read_text())
    assert losses(old_run)[-4:] == pytest.approx(then, rel=1e-4)
