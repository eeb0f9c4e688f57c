"""Guidance from the command line: what is drawn, what it costs, what is said of it, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from in_one_process import draw
from tiny import ROOT, TINY, error, snapshot, tiny_command

import main
from data import LevelSpace
from experiment import load_run
from experiment.build import build_sampler
from experiment.config import load_config
from models import CFGPlusPlusWeight, ClippedScoreModel, GuidedScoreModel
from proofs.checked import times_of
from sde_lib import points_of

# a network that takes the label -1
NULL = ("--config.model.class_conditional=true", "--config.model.condition_dropout=0.5")
LOWRES = ("--config.data.condition=lowres", "--config.data.condition_options=factor=2")
DDIM = ("--config.sampling.sampler=ddim", "--config.sampling.grid=log_snr")


def guided(**settings: object) -> list[str]:
    return [f"--config.sampling.guidance_{name}={value}" for name, value in settings.items()]


@pytest.fixture(scope="module")
def conditional(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("conditional") / "run"
    assert main.run(tiny_command("train", workdir, *NULL, "--config.optim.learning_rate=0.02")) == 0
    return workdir


@pytest.fixture(scope="module")
def unlike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of another SDE."""
    workdir = tmp_path_factory.mktemp("unlike") / "run"
    assert main.run(tiny_command("train", workdir, "--config.training.num_steps=1", config="ve/digits")) == 0
    return workdir


def made(workdir: Path, folder: Path, *extra: str) -> tuple[np.ndarray, dict[str, Any]]:
    assert main.run(tiny_command("sample", workdir, f"--output={folder}", *NULL, *DDIM, *extra)) == 0
    return np.load(folder / "samples.npz")["arr_0"], json.loads((folder / "samples.json").read_text())


def config_of(*extra: str) -> Any:
    return load_config(str(ROOT / "configs/vp/digits.py"), [*TINY, *NULL, *DDIM, *extra])


def test_the_commands_samples_are_those_of_the_wrappers(
    conditional: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    plain, about = made(conditional, tmp_path / "plain")
    assert about["guidance"] is None and about["nfe"] == 5
    same, _ = made(conditional, tmp_path / "same", *guided(weight=1))
    np.testing.assert_array_equal(same, plain)
    run = load_run(conditional, device="cpu")
    sampler, space = build_sampler(config_of()), LevelSpace(17)
    times = times_of(sampler, run.sde)
    middle = points_of(run.sde, times)[2].noise_ratio * 1.001
    cfgpp = CFGPlusPlusWeight(0.5, times)
    cases: list[tuple[dict[str, Any], dict[str, Any], int]] = [
        ({"weight": 3}, {"weight": 3.0}, 10),
        ({"weight": 3, "interval": f"0,{middle}"}, {"weight": 3.0, "interval": (0.0, middle)}, 8),
        ({"weight": 4, "rescale": 0.7}, {"weight": 4.0, "rescale": 0.7}, 10),
        ({"weight": 0.5, "schedule": "cfg++"}, {"weight": cfgpp}, 10),
    ]
    for number, (settings, options, nfe) in enumerate(cases):
        capsys.readouterr()
        found, about = made(conditional, tmp_path / str(number), *guided(**settings))
        assert not np.array_equal(found, plain)
        model = ClippedScoreModel(GuidedScoreModel(run.model, **options))
        how: dict[str, Any] = {"sample_shape": run.sample_shape, "num_samples": 5, "batch_size": 3}
        expected, _, _ = draw(sampler, model, classes=range(10), **how)
        np.testing.assert_array_equal(found, space.pixels(expected))
        said = {"weight": float(settings["weight"]), "schedule": settings.get("schedule", "constant")}
        assert said.items() <= about["guidance"].items() and about["nfe"] == nfe
        by = f"{'lambda = 0.5 of CFG++' if 'schedule' in settings else settings['weight']}"
        assert f"guided by {by}, {nfe} network calls each" in capsys.readouterr().err
        # and in a notebook
        there = replace(run, config=config_of(*guided(**settings)))
        np.testing.assert_array_equal(space.pixels(space.encode(there.sample(5))), found)


def test_autoguidance_by_another_checkpoint_of_other_weights(conditional: Path, tmp_path: Path):
    found = {}
    for step in (3, 6):
        for weights in ("ema", "raw"):
            settings = guided(weight=3, reference=f"{conditional}@{step}", reference_weights=weights)
            samples, about = made(conditional, tmp_path / f"{step}{weights}", *settings)
            assert about["guidance"]["reference"]["step"] == step and about["nfe"] == 10
            found[step, weights] = about["fingerprint"], samples
            reference = load_run(conditional, device="cpu", step=step, weights=weights).model
            model = GuidedScoreModel(load_run(conditional, device="cpu").model, weight=3.0, reference=reference)
            how: dict[str, Any] = {"sample_shape": (1, 8, 8), "num_samples": 5, "batch_size": 3}
            expected, _, _ = draw(build_sampler(config_of()), ClippedScoreModel(model), classes=range(10), **how)
            np.testing.assert_array_equal(samples, LevelSpace(17).pixels(expected))
    weights = [fingerprint["reference"]["weights"] for fingerprint, _ in found.values()]
    assert len(set(weights)) == 4
    # the newest, by its path alone
    _, about = made(conditional, tmp_path / "newest", *guided(weight=3, reference=conditional))
    assert about["fingerprint"] == found[6, "ema"][0]


REFUSED = [
    (guided(weight=-1), "config.sampling.guidance_weight must be at least 0, got -1.0"),
    (guided(weight="nan"), "config.sampling.guidance_weight must be at least 0, got nan"),
    (guided(weight=-0.1, schedule="cfg++"), "config.sampling.guidance_weight must be at least 0, got -0.1"),
    (guided(schedule="cfg"), "unknown guidance_schedule 'cfg'"),
    (guided(weight=2, interval="2,0.2"), "(lo, hi) with 0 <= lo < hi, got (2.0, 0.2)"),
    (guided(weight=2, interval="1,1"), "(lo, hi) with 0 <= lo < hi"),
    (guided(weight=2, interval="1"), "(lo, hi) with 0 <= lo < hi"),
    (guided(weight=2, interval="low,high"), "config.sampling.guidance_interval must be of type tuple, got 'low,high'"),
    (guided(weight=2, rescale=1.5), "config.sampling.guidance_rescale must be at most 1, got 1.5"),
    (guided(weight=2, reference="runs/nothing"), "runs/nothing holds no trained run; name the work directory of one"),
    (guided(reference="runs/nothing"), "guidance_reference needs guidance, got sampling.guidance_weight=1"),
    (guided(interval="0.2,2"), "guidance_interval needs guidance, got sampling.guidance_weight=1, which is none; set"),
    (guided(rescale=0.7), "guidance_rescale needs guidance, got sampling.guidance_weight=1"),
    (guided(weight=2, reference_weights="mean"), "unknown guidance_reference_weights 'mean'"),
    (
        [*guided(schedule="cfg++"), "--config.sampling.sampler=probability_flow"],
        "guidance_schedule=cfg++ needs a sampler that steps along sampling.grid",
    ),
]


@pytest.mark.parametrize(("extra", "message"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_bad_guidance_is_refused_before_anything_is_drawn(
    conditional: Path, capsys: pytest.CaptureFixture[str], extra: list[str], message: str
):
    before = snapshot(conditional)
    assert message in error(capsys, tiny_command("sample", conditional, *NULL, *extra))
    assert snapshot(conditional) == before


def test_references_that_cannot_be(
    conditional: Path, unlike: Path, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    vectors, empty = tmp_path / "vectors", tmp_path / "empty"
    small = ("--config.training.num_steps=1", "--config.model.network.hidden=8")
    flags = [f"--config={ROOT / 'configs/vp/moons.py'}", "--mode=train", f"--workdir={vectors}", *small]
    assert main.run([*flags, "--config.training.sample_every=0", "--config.device=cpu"]) == 0
    assert main.run(tiny_command("train", empty, "--config.training.num_steps=1")) == 0
    (empty / "checkpoints").rename(tmp_path / "away")
    for reference, message in (
        (
            unlike,
            f"sampling.guidance_reference={unlike} cannot guide the model: the reference must be of the model's SDE",
        ),
        (vectors, "is of other data, [2] in RealSpace"),
        (empty, "has no checkpoint yet"),
        (f"{conditional}@5", "has no checkpoint of step 5; choose one of: 6, 3"),
    ):
        command = tiny_command("sample", conditional, *NULL, *guided(weight=2, reference=reference))
        assert message in error(capsys, command)
    # one that is told images
    assert main.run(tiny_command("train", tmp_path / "lowres", *LOWRES, "--config.training.num_steps=1")) == 0
    command = tiny_command("sample", conditional, *NULL, *guided(weight=2, reference=tmp_path / "lowres"))
    assert "is told LowResolution(factor=2), got a model that is told no condition; take one" in error(capsys, command)
    # one that is told classes, of a model that is not
    command = tiny_command("sample", tiny_run, *guided(weight=2, reference=conditional))
    assert "is told 10 classes, got a model of none" in error(capsys, command)
    assert not (conditional / "samples").exists()


def test_a_weight_without_a_null_branch_is_refused(tiny_run: Path, capsys: pytest.CaptureFixture[str]):
    assert "trained without its condition now and then" in error(
        capsys, tiny_command("sample", tiny_run, *guided(weight=2))
    )


@pytest.mark.parametrize("settings", [{"weight": 2}, {"schedule": "cfg++"}])
def test_a_guided_model_is_not_measured(
    conditional: Path, capsys: pytest.CaptureFixture[str], settings: dict[str, Any]
):
    assert "a guided model has no likelihood" in error(
        capsys, tiny_command("eval", conditional, *NULL, *guided(**settings))
    )
    assert not (conditional / "eval").exists()
