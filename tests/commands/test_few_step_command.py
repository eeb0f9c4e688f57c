"""Progressive and distribution-matching distillation by commands: trained, resumed to the bit, drawn from, refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from thinning import only
from tiny import error, last_tensors, tiny_command

import main
from experiment import load_run
from samplers import make_sampler

PROGRESSIVE, MATCHING = "distill/digits_progressive", "distill/digits_dmd"

OF = {
    PROGRESSIVE: ["--config.distillation.stages=4,2,1", "--config.distillation.stage_steps=2"],
    MATCHING: [
        "--config.distillation.ratio=2",
        "--config.distillation.regression_steps=2",
        "--config.distillation.gan=0.1",
    ],
}


def command(mode: str, workdir: Path, teacher: Path, config: str, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, f"--config.distillation.teacher={teacher}", *OF[config], *extra, config=config)


@pytest.fixture(scope="module", params=[PROGRESSIVE, MATCHING])
def config(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def student(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory, config: str) -> Path:
    """A finished run."""
    workdir = tmp_path_factory.mktemp("student") / "run"
    steps = {PROGRESSIVE: 1, MATCHING: 1}[config]
    extra = ["--config.training.checkpoint_every=1", "--config.training.keep_checkpoints=9"]
    assert main.run(command("train", workdir, tiny_run, config, *extra, f"--config.sampling.num_steps={steps}")) == 0
    return workdir


def same_bits(one: Path, other: Path) -> None:
    ours, theirs = last_tensors(one), last_tensors(other)
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []


@pytest.mark.parametrize("kept", only((3,), [1, 2, 3, 4, 5]))
def test_a_run_goes_on_to_the_same_bits_from_any_step(
    tiny_run: Path, student: Path, tmp_path: Path, config: str, kept: int
):
    """Teacher or critic, with its optimizer, come from the checkpoint, within a stage and at its end."""
    copy = tmp_path / "run"
    shutil.copytree(student, copy)
    for folder in (copy / "checkpoints").glob("step_*"):
        if int(folder.name[5:]) > kept:
            shutil.rmtree(folder)
    extra = ["--config.training.checkpoint_every=1", "--config.training.keep_checkpoints=9"]
    assert main.run(command("train", copy, tiny_run, config, *extra)) == 0
    same_bits(copy, student)


def test_two_processes_train_what_one_does(killer: Killer, tiny_run: Path, tmp_path: Path, config: str):
    one, two = tmp_path / "one", tmp_path / "two"
    assert main.run(command("train", one, tiny_run, config)) == 0
    assert run_together(killer, command("train", two, tiny_run, config), 2) == [0, 0]
    ours, theirs = last_tensors(one), last_tensors(two)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor.double(), theirs[name].double(), rtol=1e-3, atol=1e-5, msg=name)


def test_samples_take_as_many_calls_as_the_student_has_steps(student: Path, tmp_path: Path, config: str):
    draw = command("sample", student, tmp_path / "no_teacher", config, "--config.sampling.num_steps=1")
    assert main.run(draw) == 0
    about = json.loads((student / "samples" / "samples.json").read_text())
    assert about["nfe"] == 1
    drawn = np.load(student / "samples" / "samples.npz")["arr_0"]
    run = load_run(student, device="cpu")
    again = run.sample(3, sampler=make_sampler("consistency" if config == MATCHING else "ddim", num_steps=1))
    assert drawn.shape[0] == 5 and again.shape == (3, 1, 8, 8)
    assert np.array_equal(drawn[:3, ..., 0], np.floor(again[:, 0].double().numpy() * 255 / 16 + 0.5))


@pytest.mark.parametrize(
    ("of", "mode", "flags", "message"),
    [
        (PROGRESSIVE, "eval", (), "answers 1 steps of DDIM and nothing else, no likelihood either"),
        (PROGRESSIVE, "eval", ("eval.likelihoods=ode",), "answers 1 steps of DDIM"),
        (PROGRESSIVE, "sample", ("sampling.num_steps=2",), "sampling.num_steps=1"),
        (PROGRESSIVE, "sample", ("sampling.num_steps=1", "sampling.options=eta=1"), "sampling.sampler=ddim"),
        (PROGRESSIVE, "sample", ("sampling.num_steps=1", "sampling.sampler=heun"), "sampling.sampler=ddim"),
        (PROGRESSIVE, "sample", ("sampling.num_steps=1", "sampling.sampler=ancestral"), "sampling.sampler=ddim"),
        (PROGRESSIVE, "sample", ("distillation.stages=8,4,2",), "belongs to another config"),
        (MATCHING, "eval", (), "is not a density"),
        (MATCHING, "sample", ("sampling.num_steps=2",), "answers pure noise alone"),
        (MATCHING, "sample", ("sampling.num_steps=1", "sampling.options=t_start=0.7"), "t=1, got a start at t=0.7"),
        (MATCHING, "sample", ("sampling.sampler=ddim",), "is not a density"),
    ],
)  # fmt: skip
def test_a_student_is_no_density_and_has_steps_of_its_own(
    student: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    of: str, mode: str, flags: tuple[str, ...], message: str,
):  # fmt: skip
    if of == config:
        extra = [f"--config.{flag}" for flag in flags]
        assert message in error(capsys, command(mode, student, tmp_path / "no_teacher", config, *extra))


def test_no_pipeline_of_diffusers_draws_as_a_student_does(
    student: Path, config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    message = {PROGRESSIVE: "answers 1 steps of DDIM and nothing else", MATCHING: "is not a density"}[config]
    assert message in error(capsys, command("export", student, tmp_path / "no_teacher", config, "--format=diffusers"))
    assert not (student / "diffusers").exists()


@pytest.mark.parametrize(
    ("of", "flags", "message"),
    [
        (PROGRESSIVE, ("distillation.stages=8,4,1",), "must halve"),
        (PROGRESSIVE, ("distillation.stages=",), "must halve"),
        (PROGRESSIVE, ("training.num_steps=7",), "must be at most 6"),
        (
            PROGRESSIVE,
            ("model.answers=posterior_mean",),
            "loss 'progressive_distillation' and model.answers=steps go together",
        ),
        (PROGRESSIVE, ("distillation.teacher=",), "distillation.teacher"),
        (PROGRESSIVE, ("training.ema_profiles=0.1",), "ema_profiles is of one average"),
        (PROGRESSIVE, ("training.loss=distribution_matching",), "does not train"),
        (MATCHING, ("model.answers=consistency",), "does not train"),
        (MATCHING, ("distillation.teacher=",), "distillation.teacher"),
        (MATCHING, ("distillation.ratio=0",), "must be at least 1"),
    ],
)
def test_what_cannot_be_distilled_is_refused_in_one_line(
    tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, flags: tuple[str, ...], message: str
):
    extra = [f"--config.{flag}" for flag in flags]
    assert message in error(capsys, command("train", tmp_path / "run", tiny_run, of, *extra))
    assert not (tmp_path / "run" / "checkpoints").exists()
