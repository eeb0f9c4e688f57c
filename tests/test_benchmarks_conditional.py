"""Measures of conditional samples where the truth is known, and one whole small run of each benchmark."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT, tiny_command
from torch import Tensor

import main
from benchmarks import guidance, restoration, super_resolution
from benchmarks.timing import table
from evaluation.quality import Estimate, train_feature_classifier
from evaluation.samples.sample_batch import draw_batch
from models import Condition, LabelledMixtureScoreModel, LinearGaussianScoreModel
from samplers import make_sampler
from sde_lib import VP

SIGMA = 0.3


def _near(estimate: Estimate, value: float) -> bool:
    return abs(estimate.value - value) < 4 * estimate.stderr


@pytest.fixture(scope="module")
def posterior() -> tuple[Tensor, Tensor, Tensor, float]:
    """Truth [N, 4], y = its mean plus noise of SIGMA, exact draws given y [N, m, 4], and the posterior variance."""
    num_images, num_draws, size = 400, 4, 4
    generator = torch.Generator().manual_seed(1)
    root = torch.eye(size).double() + 0.3
    cov, observe = root @ root.T, torch.full((1, size), 1 / size).double()
    truth = torch.randn(num_images, size, generator=generator).double() @ root.T
    y = truth @ observe.T + SIGMA * torch.randn(num_images, 1, generator=generator).double()
    gain = cov @ observe.T / (observe @ cov @ observe.T + SIGMA**2)
    left = cov - gain @ observe @ cov
    model = LinearGaussianScoreModel(VP(), weight=gain, bias=torch.zeros(size), cov=left)
    sampler = make_sampler("heun", num_steps=40, grid="log_snr")
    cond = Condition(values=y.repeat(num_draws, 1).float())
    result, _ = draw_batch(sampler, model, range(num_images * num_draws), sample_shape=(size,), cond=cond)
    draws = result.x0.double().unflatten(0, (num_draws, -1)).transpose(0, 1)
    return truth, y, draws, float(left.trace()) / size


def test_exact_draws_of_a_posterior_are_calibrated_and_as_far_from_y_as_its_noise(
    posterior: tuple[Tensor, Tensor, Tensor, float],
):
    truth, y, draws, variance = posterior
    found = super_resolution.ensemble(draws, truth)
    assert _near(found.spread_skill, 1) and found.spread_skill.stderr < 0.03
    assert _near(found.mean_error, math.sqrt(1.25 * variance))
    assert _near(found.single_error, math.sqrt(2 * variance))
    # (x, y) of a draw has the law of the truth's (x, y), so that A x - y is the noise
    observed = draws.mean(2, keepdim=True)
    assert _near(super_resolution.error_of(observed, y[:, None].expand_as(observed)), SIGMA)


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_draws_that_are_too_sure_or_too_unsure_are_found_out(scale: float):
    # with s times the spread about the posterior mean: E var = s^2 v, E (mean - truth)^2 = v (1 + s^2 / m)
    generator = torch.Generator().manual_seed(2)
    truth, draws = (torch.randn(*shape, 4, generator=generator) for shape in ((1000,), (1000, 4)))
    found = super_resolution.ensemble(scale * draws, truth)
    assert _near(found.spread_skill, math.sqrt(1.25 * scale**2 / (1 + scale**2 / 4)))


def test_the_error_of_the_measures_is_that_of_repeated_experiments():
    generator = torch.Generator().manual_seed(3)
    # images differ in how uncertain they are, as real ones do
    scale = torch.rand(500, 60, 1, generator=generator) + 0.2
    truth = scale * torch.randn(500, 60, 2, generator=generator)
    draws = scale[:, :, None] * torch.randn(500, 60, 3, 2, generator=generator)
    found = [super_resolution.ensemble(*pair) for pair in zip(draws, truth, strict=True)]
    for name in ("mean_error", "single_error", "spread_skill"):
        values = torch.tensor([getattr(one, name).value for one in found])
        said = torch.tensor([getattr(one, name).stderr for one in found]).mean()
        assert float(said) == pytest.approx(float(values.std()), rel=0.12), name


class _ExactJudge:
    """The exact classifier of a mixture's samples, whose features are the samples."""

    def __init__(self, mixture: LabelledMixtureScoreModel) -> None:
        self.mixture = mixture

    def __call__(self, x: Tensor) -> Tensor:
        return self.mixture.class_log_prob(x, torch.zeros(len(x)))

    def features(self, x: Tensor) -> Tensor:
        return x


def test_samples_of_a_labelled_mixture_are_recognised_as_often_as_they_can_be():
    # classes N(-m, I) and N(m, I): the best judge is right with probability Phi(|m|)
    mean = torch.tensor([[-0.6, -0.8], [0.6, 0.8]])
    mixture = LabelledMixtureScoreModel(
        VP(), means=mean, covs=torch.eye(2).expand(2, 2, 2), labels=[0, 1], weights=[0.5, 0.5]
    )
    labels = torch.arange(400) % 2
    real = mean[labels] + torch.randn(400, 2, generator=torch.Generator().manual_seed(4))
    measure = guidance.WithinClass(_ExactJudge(mixture), real, labels, group_size=200, num_projections=20)
    sampler = make_sampler("ddim", num_steps=50)
    x0 = draw_batch(sampler, mixture, range(400), sample_shape=(2,), cond=labels)[0].x0
    told = measure(x0, labels)
    assert _near(told.recognised, 0.5 * (1 + math.erf(1 / math.sqrt(2))))
    # at the floor, that of groups of 200 beside 200: far less than one squared distance of the means
    assert told.frechet.value < 0.1 and told.sliced.value < 0.1
    # the other class is |2 m|^2 = 4 away, and 4 / D by projections
    other = measure(x0, 1 - labels)
    assert _near(other.recognised, 0.5 * (1 - math.erf(1 / math.sqrt(2))))
    assert other.frechet.value == pytest.approx(4, abs=4 * other.frechet.stderr + 0.1)
    assert other.sliced.value == pytest.approx(2, abs=4 * other.sliced.stderr + 0.1)
    # told nothing, half are of the class
    blind = draw_batch(sampler, mixture, range(400), sample_shape=(2,), cond=torch.full((400,), -1))[0].x0
    assert _near(measure(blind, labels).recognised, 0.5)


@pytest.mark.slow
def test_a_whole_run_of_guidance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(guidance, "train_feature_classifier", partial(train_feature_classifier, num_epochs=2))
    run = tmp_path / "run"
    assert main.run(tiny_command("train", run, config="vp/digits_class")) == 0
    arguments = [f"--workdir={run}", "--weights=0,1,2", "--per-class=3", "--num-steps=4", "--interval=0.1,10"]
    result = tmp_path / "guidance.json"
    guidance.main([*arguments, f"--pictures={tmp_path / 'pictures'}", f"--output={result}"])
    report = json.loads(result.read_text())
    assert [(one["label"], one["nfe"]) for one in report["points"]] == [
        ("w = 0", 8),
        ("w = 1", 4),
        ("w = 2", 8),
        # the first two steps are above, at sigma / alpha of 245 and 26
        ("w = 2 for sigma / alpha of 0.1 to 10", 6),
    ]
    assert report["judge_accuracy"] == pytest.approx(report["held_out"]["recognised"]["value"])
    assert report["held_out"]["frechet"]["value"] < min(one["frechet"]["value"] for one in report["points"])
    names = {path.name for path in (tmp_path / "pictures").iterdir()}
    assert names == {f"digits_w_{which}.png" for which in (0, 1, 2, "2_for_sigma_alpha_of_0.1_to_10")}


@pytest.mark.slow
def test_a_whole_run_of_super_resolution(tmp_path: Path):
    run = tmp_path / "run"
    assert main.run(tiny_command("train", run, config="vp/digits_sr")) == 0
    arguments = [f"--workdir={run}", "--noise-times=0,0.1", "--num-images=6", "--num-draws=2", "--num-steps=3"]
    result, picture = tmp_path / "sr.json", tmp_path / "sr.png"
    super_resolution.main([*arguments, f"--picture={picture}", f"--output={result}"])
    report = json.loads(result.read_text())
    assert [one["noise_t"] for one in report["points"]] == [0, 0.1]
    # each pixel repeated has the mean that was observed
    assert report["upsampled"]["nearest"]["consistency"]["value"] < 0.02
    assert picture.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"noise of t from 0 to 0\.1, got \[0\.0, 0\.7\]; change it"):
        super_resolution.main([f"--workdir={run}", "--noise-times=0,0.7"])


def test_a_whole_run_of_restoration(tiny_run: Path, tmp_path: Path):
    arguments = [f"--workdir={tiny_run}", "--problems=box,x2", "--num-images=3", "--num-samples=2", "--num-steps=3"]
    result, pictures = tmp_path / "r.json", tmp_path / "pictures"
    arguments += [f"--pictures={pictures}", f"--output={result}"]
    restoration.main([*arguments, "--methods=ddnm,replacement"])
    first = json.loads(result.read_text())
    assert {(row["problem"], row["method"]) for row in first["rows"]} == {
        (problem, method) for problem in ("box", "x2") for method in ("ddnm", "replacement")
    }
    assert all(row["nfe"] == 3 and row["rmse"]["value"] > row["rmse_of_mean"]["value"] for row in first["rows"])
    assert {path.name for path in pictures.iterdir()} == {"digits_restored_box.png", "digits_restored_x2.png"}
    # rows that are there are kept, with the same settings alone
    restoration.main([*arguments, "--methods=ddnm,repaint"])
    second = json.loads(result.read_text())
    assert second["rows"][:4] == first["rows"] and [row["method"] for row in second["rows"][4:]] == ["repaint"] * 2
    restoration.main([*arguments, "--methods=ddnm", "--noise-std=0.2"])
    assert len(json.loads(result.read_text())["rows"]) == 2
    with pytest.raises(SystemExit):
        restoration.main([*arguments, "--methods=ddmn"])


@pytest.mark.parametrize("of", ["", "_mnist"])
def test_the_tables_of_restorations_are_those_of_the_figures_beside_them(of: str):
    report = json.loads(restoration.RESULT.with_stem(restoration.RESULT.stem + of).read_text())
    assert table(restoration.rows(report)) in (ROOT / "docs" / "howto" / "restore.md").read_text()


@pytest.mark.parametrize("of", ["", "_mnist"])
@pytest.mark.parametrize("benchmark", [guidance, super_resolution])
def test_the_tables_of_the_page_are_those_of_the_figures_beside_it(benchmark: Any, of: str):
    report = json.loads(benchmark.RESULT.with_stem(benchmark.RESULT.stem + of).read_text())
    assert table(benchmark.rows(report)) in (ROOT / "docs" / "conditional.md").read_text()
