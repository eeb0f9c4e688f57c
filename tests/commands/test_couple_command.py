"""Couples and reflows by command: the same couples in any batches, the same weights after a resume, refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import error, last_tensors

import main
from experiment import load_run
from models import ClippedScoreModel
from samplers import DDIMSampler

SMALL = [
    *("--config.model.channels=8", "--config.model.norm_groups=4", "--config.training.batch_size=8"),
    *("--config.training.sample_every=0", "--config.training.checkpoint_every=2", "--config.optim.warmup_steps=1"),
    "--config.device=cpu",
]


def command(config: str, mode: str, workdir: Path, *flags: str) -> list[str]:
    return ["--config", f"configs/flow/{config}.py", "--mode", mode, "--workdir", str(workdir), *SMALL, *flags]


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("flow") / "flow"
    assert main.run(command("digits", "train", workdir, "--config.training.num_steps=4")) == 0
    drawn = ["--config.sampling.num_samples=12", "--config.sampling.batch_size=8", "--config.sampling.num_steps=6"]
    assert main.run(command("digits", "couple", workdir, *drawn)) == 0
    return workdir


def reflow_command(mode: str, workdir: Path, flow: Path, *flags: str) -> list[str]:
    return command("digits_reflow", mode, workdir, f"--config.data.couples={flow / 'couples'}", *flags)


@pytest.fixture(scope="module")
def reflow(flow: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("flow") / "reflow"
    begin = ["--init-from", str(flow), "--config.training.num_steps=4"]
    assert main.run(reflow_command("train", workdir, flow, *begin)) == 0
    return workdir


def test_couples_do_not_depend_on_their_batch(flow: Path, tmp_path: Path):
    drawn = ["--config.sampling.num_samples=12", "--config.sampling.batch_size=5", "--config.sampling.num_steps=6"]
    assert main.run(command("digits", "couple", flow, "--output", str(tmp_path / "out"), *drawn)) == 0
    ours, others = (np.load(folder / "couples.npz") for folder in (flow / "couples", tmp_path / "out"))
    assert ours["x0"].shape == (12, 1, 8, 8) and sorted(ours.files) == ["labels", "noise", "x0"]
    np.testing.assert_array_equal(ours["noise"], others["noise"])
    np.testing.assert_allclose(ours["x0"], others["x0"], rtol=0, atol=1e-5)
    report = json.loads((tmp_path / "out" / "couples.json").read_text())
    assert report["nfe"] == 6 and report["num_couples"] == 12 and report["straightness"] >= 0


def test_couples_are_those_of_the_sampler(flow: Path):
    arrays = np.load(flow / "couples" / "couples.npz")
    x_T, x0 = (torch.from_numpy(arrays[name]) for name in ("noise", "x0"))
    model = ClippedScoreModel(load_run(flow, device="cpu").model)
    torch.testing.assert_close(DDIMSampler(num_steps=6).sample(model, x_T).x0, x0, rtol=0, atol=1e-5)


def test_a_reflow_resumes_to_the_same_bits(reflow: Path, flow: Path, tmp_path: Path):
    begin = ["--init-from", str(flow)]
    assert main.run(reflow_command("train", tmp_path / "run", flow, *begin, "--config.training.num_steps=2")) == 0
    assert main.run(reflow_command("train", tmp_path / "run", flow, "--config.training.num_steps=4")) == 0
    ours, others = last_tensors(tmp_path / "run"), last_tensors(reflow)
    assert ours.keys() == others.keys() and all(torch.equal(ours[name], others[name]) for name in ours)


def test_a_reflow_is_sampled_by_its_flow_and_measured_by_its_likelihood_alone(
    reflow: Path, flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = Path(shutil.copytree(reflow, tmp_path / "run"))
    assert load_run(run, device="cpu").model.answers == "flow"
    few = ["--config.sampling.num_samples=2", "--config.eval.num_images=2", "--config.eval.ode_max_nfe=400"]
    assert main.run(reflow_command("sample", run, flow, *few)) == 0
    assert main.run(reflow_command("eval", run, flow, *few, "--config.eval.ode_rtol=0.1")) == 0
    assert json.loads((run / "eval" / "report.json").read_text())["ode"]["bits_per_dim"] > 0
    assert "VariationalBound needs a model that predicts posterior means" in error(
        capsys, reflow_command("eval", run, flow, *few, "--config.eval.likelihoods=vlb")
    )
    assert "AncestralSampler needs a model that predicts posterior means" in error(
        capsys, reflow_command("sample", run, flow, *few, "--config.sampling.sampler=ancestral")
    )


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.couples="], "training.loss=reflow learns on data.couples, got reflow and none"),
        (["--config.data.couples=nowhere"], "nowhere/couples.npz is not there; write it by --mode couple"),
        (["--config.training.loss=dsm"], "training.loss=reflow learns on data.couples, got dsm and"),
        (["--config.model.answers=posterior_mean"], "loss 'reflow' and model.answers=flow go together"),
        (["--config.data.downscale=2"], "couples: x0 must be [12, 1, 4, 4], as digits has it, got [12, 1, 8, 8]"),
        (["--config.data.random_flip=true"], "random_flip mirrors images, but digits holds x0; leave it off"),
    ],
)
def test_bad_reflows_are_refused_in_one_line(
    flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
):
    assert message in error(
        capsys, reflow_command("train", tmp_path / "run", flow, "--config.training.num_steps=1", *flags)
    )


def test_couples_need_a_sampler_that_follows_the_flow(flow: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--config.sampling.sampler=ancestral", "--config.sampling.num_samples=2", "--output", str(tmp_path)]
    assert "couples need a sampler that follows the flow, got AncestralSampler" in error(
        capsys, command("digits", "couple", flow, *flags)
    )
