"""``--mode progressive`` end to end: files, figures, a model whose figures are known, and bad input."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, error, snapshot, tiny_command

import main
from commands import sample
from commands.latents import progressive as module
from data import LevelSpace, load_dataset
from evaluation.quality import frechet_distance
from models import GaussianMixtureScoreModel

BRIEF = [
    "--config.progressive.num_images=6",
    "--config.progressive.share_at=0.3,0.6",
    "--config.progressive.shared_images=3",
    "--config.progressive.shared_samples=2",
]
FILES = ["curve.png", "grid.png", "progressive.npz", "report.json", "shared.png"]


def _run(workdir: Path, folder: Path, *extra: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    assert main.run(tiny_command("progressive", workdir, *BRIEF, f"--output={folder}", *extra)) == 0
    with np.load(folder / "progressive.npz") as arrays:
        return dict(arrays), json.loads((folder / "report.json").read_text())


def test_the_report_is_of_the_files(tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    arrays, report = _run(tiny_run, tmp_path / "out")
    said = capsys.readouterr().out
    names = sorted(path.name for path in (tmp_path / "out").iterdir() if path.name[0] != ".")
    assert names == FILES
    # of 5 steps the last ends without noise
    np.testing.assert_allclose(report["times"], [1.0, 0.8, 0.6, 0.4, 0.2])
    assert arrays["x0_hat"].shape == (5, 5, 1, 8, 8) and report["num_samples"] == 5 and report["num_images"] == 6
    # the samples are those of --mode sample
    assert main.run(tiny_command("sample", tiny_run, f"--output={tmp_path / 'drawn'}")) == 0
    with np.load(tmp_path / "drawn" / "samples.npz") as drawn:
        np.testing.assert_array_equal(arrays["samples"], drawn["arr_0"])
    # what is predicted at last is the sample
    assert report["rmse_to_sample"][-1] == pytest.approx(0, abs=1e-6) and report["rmse_to_sample"][0] > 0.1
    np.testing.assert_array_equal(LevelSpace(17).pixels(torch.from_numpy(arrays["x0_hat"][-1])), arrays["samples"])
    errors = (arrays["x0_hat"] - arrays["x0_hat"][-1]).astype(np.float64) ** 2
    np.testing.assert_allclose(report["rmse_to_sample"], np.sqrt(errors.mean((1, 2, 3, 4))), atol=1e-6)
    data = load_dataset("digits", root="-", split="test")
    x0 = data.space.encode(data.stored).flatten(1)
    expected = frechet_distance(torch.from_numpy(arrays["x0_hat"][1]).flatten(1), x0)
    assert report["frechet"][1] == pytest.approx(expected) and report["frechet_stderr"][1] > 0
    assert report["frechet_of"] == "pixels" and "Frechet distance of pixels, not of Inception features" in said
    assert report["frechet_of_samples"] == pytest.approx(report["frechet"][-1], rel=1e-5)
    assert arrays["shared_x0"].shape == (2, 3, 2, 1, 8, 8) and report["share_at"] == [0.3, 0.6]
    offset = (arrays["shared_x0"][0] - x0.mean(0).view(1, 8, 8).numpy()).reshape(3, 2, -1).astype(np.float64)
    shared = (offset[:, 0] * offset[:, 1]).mean() / (offset**2).mean()
    assert report["shared_variance"][0] == pytest.approx(shared, rel=1e-4)
    assert "5 samples of step 6 by ancestral, 5 network calls each; 6 images of digits test" in said
    with Image.open(tmp_path / "out" / "grid.png") as picture:
        assert picture.size == (6 * 66 + 2, 5 * 66 + 2 + 16)
    with Image.open(tmp_path / "out" / "shared.png") as picture:
        assert picture.size == (4 * 66 + 2, 2 * (3 * 66 + 2 + 16))


def test_all_is_the_same_at_any_batch_size(tiny_run: Path, tmp_path: Path):
    arrays, report = _run(tiny_run, tmp_path / "a")
    others, other = _run(tiny_run, tmp_path / "b", "--config.sampling.batch_size=64")
    for name in ("x0_hat", "shared_x0", "shared_x0_hat"):
        np.testing.assert_allclose(others[name], arrays[name], rtol=0, atol=2e-4)
    for name in ("rmse_to_sample", "rmse_to_image", "frechet", "shared_variance"):
        np.testing.assert_allclose(other[name], report[name], rtol=1e-3, atol=1e-4)
    seeded, _ = _run(tiny_run, tmp_path / "c", "--config.seed=1", "--config.progressive.share_at=")
    assert (seeded["x0_hat"] != arrays["x0_hat"]).mean() > 0.1


def test_an_interrupted_command_goes_on_to_the_same_bytes(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    _run(tiny_run, tmp_path / "whole")
    whole, calls = module._done, []

    def stopped(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return whole(*arguments)

    command = tiny_command("progressive", tiny_run, *BRIEF, f"--output={tmp_path / 'out'}")
    with monkeypatch.context() as patched:
        patched.setattr(module, "_done", stopped)
        assert main.run(command) == 130
    # of samples and images two each; of three images a state each at two times, a batch an image
    assert "stopped with 3 of 10 batches kept" in capsys.readouterr().err
    assert main.run(command) == 0
    assert "goes on: 3 of 10 batches were drawn before" in capsys.readouterr().err
    assert snapshot(tmp_path / "out") == snapshot(tmp_path / "whole")


class _Oracle(GaussianMixtureScoreModel):
    """The Gaussian with mean and covariance of the test digits: its guess is the best linear one."""

    def forward(self, x_t, t, *, cond=None):
        answer = super().forward(x_t.flatten(1), t)
        return type(answer)(x0=answer.x0.view_as(x_t), eps=answer.eps.view_as(x_t), sigma=answer.sigma)


def test_the_figures_of_a_gaussian_are_those_of_closed_forms(
    tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = load_dataset("digits", root="-", split="test")
    x0 = data.space.encode(data.stored).flatten(1).double()
    load = sample.load_sampled

    def loaded(*arguments: Any) -> Any:
        run = load(*arguments)
        return replace(run, model=_Oracle(run.model.sde, means=x0.mean(0)[None], covs=x0.T.cov()[None]))

    monkeypatch.setattr(module, "load_sampled", loaded)
    _, report = _run(
        tiny_run,
        tmp_path / "out",
        "--config.sampling.sampler=euler_maruyama",
        "--config.sampling.grid=log_snr",
        "--config.sampling.num_steps=100",
        "--config.sampling.num_samples=240",
        "--config.sampling.batch_size=360",
        "--config.progressive.num_images=360",
        "--config.progressive.times=0.9,0.5,0.3,0.1",
        "--config.progressive.shared_images=90",
    )
    for name in ("rmse_to_image", "rmse_to_sample"):
        for found, stderr, expected in zip(
            report[name], report[f"{name}_stderr"], report["gaussian_rmse"], strict=True
        ):
            # the sampler's own error is of first order
            slack = 0.03 * expected if name == "rmse_to_sample" else 0.0
            assert abs(found - expected) < 4 * stderr + slack
    for found, stderr, expected in zip(
        report["shared_variance"], report["shared_variance_stderr"], report["gaussian_shared_variance"], strict=True
    ):
        assert abs(found - expected) < 4 * stderr + 0.01
    # as far as chance has 240 draws
    draws = torch.randn(240, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, vectors = torch.linalg.eigh(x0.T.cov())
    drawn = draws * values.clamp(min=0).sqrt() @ vectors.T + x0.mean(0)
    by_chance = frechet_distance(drawn, x0)
    assert abs(report["frechet_of_samples"] - by_chance) < 4 * math.sqrt(2) * report["frechet_of_samples_stderr"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (
            ["progressive.times=0.5,1.2"],
            "config.progressive.times must lie in (0, 1], got (0.5, 1.2); 1 is noise alone",
        ),
        (["progressive.share_at=0"], "config.progressive.share_at must lie in (0, 1]"),
        (["progressive.times=0.01"], "AncestralSampler has states with noise at t in [0.2, 1], got 0.01; change t"),
        (["progressive.share_at=1", "sampling.grid=leading"], "AncestralSampler can start at t in (0, 0.801], got 1;"),
        (["progressive.split=tests"], "unknown split 'tests'; did you mean 'test'?"),
        (
            ["sampling.sampler=annealed_langevin"],
            "x_t tells of the sample, which Langevin steps forget, got sampling.sampler=annealed_langevin; take ancest",
        ),
        (["sampling.sampler=predictor_corrector"], "forget, got sampling.sampler=predictor_corrector; take ancestral"),
        (["progressive.num_times=1"], "config.progressive.num_times must be at least 2, got 1; raise it"),
        (["progressive.shared_samples=1"], "config.progressive.shared_samples must be at least 2, got 1; raise it"),
        (
            ["progressive.num_images=361"],
            "config.progressive.num_images must be 1 .. 360, the size of the digits test split, got 361; ask for fewer",
        ),
        (["progressive.shared_images=500"], "config.progressive.shared_images must be 1 .. 360, the size of the"),
        (["sampling.num_samples=1"], "config.sampling.num_samples must be at least 2, of which a Frechet distance"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(
    settings: list[str], said: str, tiny_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    command = tiny_command("progressive", tiny_run, *BRIEF, f"--output={tmp_path / 'out'}")
    assert said in error(capsys, [*command, *(f"--config.{one}" for one in settings)])
    assert not list((tmp_path / "out").glob("[a-z]*"))


def test_times_to_share_count_once_and_without_there_is_no_such_picture(tiny_run: Path, tmp_path: Path):
    twice = "--config.progressive.share_at=0.5,0.5"
    arrays, report = _run(tiny_run, tmp_path / "out", twice, "--config.sampling.num_samples=2")
    assert report["share_at"] == [0.5] and arrays["shared_x0"].shape[:3] == (1, 3, 2)
    arrays, report = _run(
        tiny_run, tmp_path / "out", "--config.progressive.share_at=", "--config.sampling.num_samples=2"
    )
    assert report["share_at"] == [] and "shared_x0" not in arrays and not (tmp_path / "out" / "shared.png").exists()
    assert report["frechet_of_samples"] > 0 and report["frechet_of_samples_stderr"] is None


def test_a_model_is_told_classes_in_turn_and_each_image_its_own(
    class_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    told: dict[str, list[int]] = {"draw_progressively": [], "predictions_along": [], "draw_shared": []}
    for name, seen in told.items():
        whole = getattr(module, name)

        def watched(*arguments: Any, whole: Any = whole, seen: list[int] = seen, cond: Any, **options: Any) -> Any:
            seen.extend(cond.tolist())
            return whole(*arguments, cond=cond, **options)

        monkeypatch.setattr(module, name, watched)
    _run(class_run, tmp_path / "out", *CLASSES, "--config.sampling.classes=3,7")
    labels = load_dataset("digits", root="-", split="test").labels.tolist()
    assert told["draw_progressively"] == [3, 7, 3, 7, 3]
    assert told["predictions_along"] == [*labels[:6], *labels[:3], *labels[:3]]
    assert told["draw_shared"] == [*labels[:3], *labels[:3]]
