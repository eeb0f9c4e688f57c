"""Consistency models from the command line: a teacher, a student, its samples, and what is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from killing import Killer, run_together
from tiny import error, last_tensors, tiny_command

import main
from experiment import load_run
from models import ConsistencyModel
from samplers import make_sampler

NO_DROPOUT = "--config.model.dropout=0"
TUNING = ["--config.model.answers=consistency", "--config.training.loss=consistency_tuning"]
TWO_STEPS = ["--config.sampling.sampler=consistency", "--config.sampling.num_steps=2"]


def student(mode: str, workdir: Path, teacher: Path | str, *extra: str) -> list[str]:
    return tiny_command(mode, workdir, *TUNING, f"--config.distillation.teacher={teacher}", *TWO_STEPS, *extra)


@pytest.fixture(scope="module")
def run(tiny_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished student of ``tiny_run``; copy it before changing it."""
    workdir = tmp_path_factory.mktemp("consistency") / "run"
    assert main.run(student("train", workdir, tiny_run)) == 0
    return workdir


def same(one: Path, other: Path) -> bool:
    ours, theirs = last_tensors(one), last_tensors(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("loss", ["consistency_distillation", "scm"])
def test_a_student_begins_as_its_teacher(tiny_run: Path, tmp_path: Path, loss: str):
    """One step at a learning rate of nearly 0 leaves the teacher's average, in weights and average alike."""
    slow = ["--config.optim.learning_rate=1e-20", "--config.training.num_steps=1", f"--config.training.loss={loss}"]
    assert main.run(student("train", tmp_path, tiny_run, *slow)) == 0
    ours, theirs = last_tensors(tmp_path), last_tensors(tiny_run)
    for name in (name for name in theirs if name.startswith("ema.")):
        for prefix in ("model.", "ema."):
            torch.testing.assert_close(ours[name.replace("ema.", prefix)], theirs[name], rtol=1e-6, atol=1e-9)


def test_a_stopped_and_a_killed_run_go_on_to_the_same_bits(killer: Killer, run: Path, tiny_run: Path, tmp_path: Path):
    stopped, killed = tmp_path / "stopped", tmp_path / "killed"
    assert main.run(student("train", stopped, tiny_run, "--config.training.num_steps=3")) == 0
    assert main.run(student("train", stopped, tiny_run)) == 0
    assert killer.run(student("train", killed, tiny_run), die_at=4) != 0
    assert killer.run(student("train", killed, tiny_run)) == 0
    assert same(run, stopped) and same(run, killed)


def test_two_processes_have_the_weights_of_one(killer: Killer, tiny_run: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert killer.run(student("train", one, tiny_run, NO_DROPOUT)) == 0
    assert run_together(killer, student("train", two, tiny_run, NO_DROPOUT), 2) == [0, 0]
    ours, theirs = last_tensors(one), last_tensors(two)
    for name in ours:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_samples_are_of_two_calls_and_the_same_in_a_notebook(run: Path, tiny_run: Path, tmp_path: Path):
    assert main.run(student("sample", run, tiny_run, f"--output={tmp_path}", "--config.sampling.clip_x0=False")) == 0
    with np.load(tmp_path / "samples.npz") as arrays:
        drawn = arrays["arr_0"]
    about = json.loads((tmp_path / "samples.json").read_text())
    assert about["nfe"] == 2 and about["sampler"] == "consistency"
    loaded = load_run(run)
    assert isinstance(loaded.model, ConsistencyModel)
    sampler, config = make_sampler("consistency", num_steps=2), loaded.config.copy_and_resolve_references()
    config.sampling.clip_x0 = False
    assert not loaded.sampled_model(sampler, config).training
    images = loaded.sample(5, sampler=sampler)
    assert images.shape == (5, 1, 8, 8) and drawn.shape == (5, 8, 8, 1)
    with pytest.raises(ValueError, match="got a ConsistencyModel, which is not a density"):
        loaded.bits_per_dim(images)


def test_a_config_may_leave_the_network_to_the_teacher(tiny_run: Path, tmp_path: Path):
    config = tmp_path / "student.py"
    config.write_text(
        "from ml_collections import ConfigDict\n\nfrom configs.vp import digits\n\n\ndef get_config():\n"
        "    config = digits.get_config()\n    config.model = ConfigDict({'backbone': 'teacher', 'answers': "
        "'consistency'})\n    config.sde = ConfigDict()\n    config.training.loss = 'consistency_training'\n"
        f"    config.distillation.teacher = '{tiny_run}@3'\n    return config\n"
    )
    short = ["--config.device=cpu", "--config.training.num_steps=1", "--config.training.batch_size=8"]
    workdir = tmp_path / "run"
    assert main.run([f"--config={config}", "--mode=train", f"--workdir={workdir}", *short]) == 0
    saved, theirs = (json.loads((one / "config.json").read_text()) for one in (workdir, tiny_run))
    assert saved["model"] == theirs["model"] | {"answers": "consistency"} and saved["sde"] == theirs["sde"]
    # once it has begun, the student is a run of its own, used without its teacher
    moved = tmp_path / "moved"
    shutil.copytree(workdir, moved)
    draw = [*TWO_STEPS, "--config.sampling.num_samples=2", f"--config.distillation.teacher={tmp_path / 'gone'}"]
    assert main.run([f"--config={config}", "--mode=sample", f"--workdir={moved}", *short, *draw]) == 0
    assert isinstance(load_run(moved).model, ConsistencyModel)


def test_bad_input_is_answered_in_one_line(
    run: Path, tiny_run: Path, class_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    def refused(command: list[str]) -> str:
        return error(capsys, command)

    def new(teacher: Path | str, *extra: str) -> str:
        said = refused(student("train", tmp_path / "new", teacher, *extra))
        assert not (tmp_path / "new" / "checkpoints").exists()
        return said

    half = ("--config.training.loss=scm", "--config.training.precision=bf16")
    assert "got training.precision=bf16; set it to fp32" in new(tiny_run, *half)
    # likelihoods and samplers of scores, of a consistency model, and the other way round
    for mode in ("eval", "export", "progressive"):
        flags = ["--format=diffusers"] if mode == "export" else []
        assert "a consistency model, which is not a density: it has no score and no likelihood" in refused(
            student(mode, run, tiny_run, *flags)
        )
    assert "sample a consistency model by sampler 'consistency'" in refused(
        student("sample", run, tiny_run, "--config.sampling.sampler=ddim", f"--output={tmp_path / 'a'}")
    )
    assert "sampler 'consistency' needs a consistency model" in refused(
        tiny_command("sample", tiny_run, "--config.sampling.sampler=consistency", f"--output={tmp_path / 'b'}")
    )
    assert "guidance is of score models, got a consistency model" in refused(
        student("sample", run, tiny_run, "--config.sampling.guidance_weight=2", f"--output={tmp_path / 'c'}")
    )
    # the teacher
    assert "begins from a trained model, got none; set distillation.teacher" in new("")
    assert f"distillation.teacher={tmp_path / 'no'} holds no trained run, which a student needs" in new(tmp_path / "no")
    assert "config.sde.beta_end is 0.01, but" in new(tiny_run, "--config.sde.beta_end=0.01")
    assert "config.model.channels is 32, but" in new(tiny_run, "--config.model.channels=32")
    assert "is of other data, [1, 8, 8]" in new(
        tiny_run, "--config.data.downscale=2,", "--config.model.attention_resolutions=4"
    )
    assert "config.model.class_conditional is False, but" in new(class_run)
    assert "holds a consistency model, which is not a density" in new(run, "--config.model.answers=consistency")
    assert "has no checkpoint of step 4; choose one of: 6, 3" in new(f"{tiny_run}@4")
    assert "got --init-from" in refused([*student("train", tmp_path / "new", tiny_run), f"--init-from={tiny_run}"])
    # another teacher in the middle of a run
    said = refused(student("train", run, f"{tiny_run}@3", "--config.training.num_steps=7"))
    assert "was trained beside another model than that of distillation.teacher" in said
    # losses and models that do not go together
    assert "loss 'ddpm' does not train a consistency model" in new("", "--config.training.loss=ddpm")
    assert "distillation.teacher is of a distillation, got training.loss=ddpm" in new(
        tiny_run, "--config.training.loss=ddpm", "--config.model.answers=posterior_mean"
    )
    assert "loss 'consistency_tuning' does not train a score model" in new(
        tiny_run, "--config.model.answers=posterior_mean"
    )
    assert "unknown answers 'scores'" in new(tiny_run, "--config.model.answers=scores")
    assert "distillation.noise_levels must be the least and the most" in new(
        tiny_run, "--config.distillation.noise_levels=9,5"
    )
