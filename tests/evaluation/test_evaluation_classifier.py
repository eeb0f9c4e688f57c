"""Cross-entropy and accuracy of a classifier over t: against closed forms, and through the command line."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from classifier_runs import CLASSIFIER, classifier_command
from tiny import ROOT, error

import main
from evaluation.classifier_curve import ClassifierCurve, ClassifierMeasurement, class_entropy
from evaluation.measurement import values_of
from experiment import load_run
from models import LabelledMixtureScoreModel
from sde_lib import VP, NoiseStreams, Tabulated


@pytest.mark.parametrize("sde", [VP(), Tabulated.ddpm()])
def test_the_exact_classifier_of_a_mixture_has_its_cross_entropy_at_every_time(sde):
    """Of N(m, s^2) and N(-m, s^2): E log(1 + exp(-2 alpha m x / v)), x ~ N(alpha m, v), v = alpha^2 s^2 + sigma^2."""
    m, s, count = 1.0, 0.5, 4_000
    mixture = LabelledMixtureScoreModel(
        sde, means=torch.tensor([[m], [-m]]), covs=torch.full((2, 1, 1), s**2), labels=[0, 1]
    )
    labels = torch.arange(count) % 2
    x0 = m * (1 - 2 * labels[:, None]) + s * torch.randn(count, 1)
    curve = ClassifierCurve(sde)
    noise = NoiseStreams(0, range(count))
    terms = values_of(curve(mixture.class_log_prob, x0.double(), cond=labels, noise=noise))
    report = ClassifierMeasurement([terms]).report(curve.times, labels)

    nodes, weights = np.polynomial.hermite_e.hermegauss(200)
    alpha, sigma = (scale.numpy()[:, None] for scale in sde.alpha_sigma(curve.times))
    std = np.sqrt(alpha**2 * s**2 + sigma**2)
    x = alpha * m + std * nodes
    exact = np.logaddexp(0, -2 * alpha * m * x / std**2) @ weights / math.sqrt(2 * math.pi)
    accuracy = torch.special.ndtr(torch.from_numpy(alpha * m / std))[:, 0].numpy()
    for name, truth in (("cross_entropy", exact), ("accuracy", accuracy)):
        error = (np.array(report[name]) - truth) / np.array(report[f"{name}_stderr"])
        assert np.abs(error).max() < 4.5
    # a classifier that knows nothing says the entropy of the classes
    assert report["cross_entropy"][-1] == pytest.approx(math.log(2), abs=1e-3)
    assert report["class_entropy"] == pytest.approx(math.log(2), abs=2e-4)
    assert report["cross_entropy_bits"][-1] == pytest.approx(1, abs=1e-3)


def test_the_entropy_of_the_classes_is_not_fitted_to_the_split():
    truth = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    draws = torch.multinomial(truth, 40 * 5_000, replacement=True).view(5_000, 40)
    found = torch.tensor([class_entropy(labels) for labels in draws], dtype=torch.float64)
    expected = float(-(truth * truth.log()).sum())
    # the shares alone are 0.025 below it
    assert float(found.mean()) == pytest.approx(expected, abs=0.003)


def test_the_report_is_the_same_at_any_batch_size(classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    reports = []
    for batch_size in (4, 10):
        workdir = Path(shutil.copytree(classifier_run, tmp_path / str(batch_size)))
        assert main.run(classifier_command("eval", workdir, f"--config.eval.batch_size={batch_size}")) == 0
        reports.append(json.loads((workdir / "eval" / "report.json").read_text()))
        assert sorted(path.name for path in (workdir / "eval").iterdir() if path.suffix != ".lock") == [
            "classifier.png", "per_image.npz", "report.json"
        ]  # fmt: skip
    one, other = (report["classifier"] for report in reports)
    assert one.keys() == other.keys()
    for name in one:
        assert one[name] == pytest.approx(other[name], abs=1e-5)
    assert one["t"][0] == pytest.approx(0, abs=2e-3) and one["t"][-1] == 1 and len(one["t"]) == 13
    assert reports[0]["num_images"] == 10 and "parameterization" not in reports[0]
    assert "H(c)" in capsys.readouterr().out
    means = np.load(tmp_path / "4" / "eval" / "per_image.npz")["cross_entropy"].mean(0)
    assert one["cross_entropy"] == pytest.approx(means.tolist())


def test_a_classifier_has_no_samples_and_is_no_score_model(
    classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    said = "holds a classifier, which has no score of its own; pass the --workdir of a score model"
    workdir = Path(shutil.copytree(classifier_run, tmp_path / "run"))
    assert said in error(capsys, classifier_command("sample", workdir))
    assert said in error(capsys, classifier_command("export", workdir, "--format=diffusers"))
    assert not (workdir / "samples").exists() and not (workdir / "diffusers").exists()
    with pytest.raises(ValueError, match=said):
        load_run(workdir)


@pytest.mark.slow
def test_the_classifier_of_digits_is_right_without_noise_and_knows_when_it_knows_nothing(tmp_path: Path):
    command = [f"--config={ROOT / 'configs' / (CLASSIFIER + '.py')}", f"--workdir={tmp_path / 'run'}"]
    for mode in ("train", "eval"):
        assert main.run([*command, f"--mode={mode}", "--config.device=cpu"]) == 0
    found = json.loads((tmp_path / "run" / "eval" / "report.json").read_text())["classifier"]
    assert found["accuracy"][0] >= 0.95
    assert abs(found["cross_entropy"][-1] - found["class_entropy"]) < 3 * found["cross_entropy_stderr"][-1]
