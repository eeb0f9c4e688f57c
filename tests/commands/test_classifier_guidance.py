"""``sampling.classifier``: samples guided by the classifier of another work directory, trained or imported."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from classifier_runs import classifier_command
from importer_references import Reference, worst_error
from tiny import ROOT, error, tiny_command

import main
from experiment.from_checkpoints import trained_kind
from experiment.guidance import load_classifier
from experiment.saved_config import saved_config

CONDITIONAL = "--config.model.class_conditional=True"


def sampled(workdir: Path, folder: Path, classifier: Path | str, *extra: str) -> tuple[Any, dict[str, Any]]:
    guided = [f"--config.sampling.classifier={classifier}", *extra]
    assert main.run(tiny_command("sample", workdir, f"--output={folder}", *guided)) == 0
    return np.load(folder / "samples.npz"), json.loads((folder / "samples.json").read_text())


def test_a_model_without_classes_draws_those_that_the_classifier_is_asked_for(
    tiny_run: Path, classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    asked = "--config.sampling.classes=7,3"
    found, about = sampled(tiny_run, tmp_path / "one", classifier_run, asked)
    assert found["arr_1"].tolist() == [7, 3, 7, 3, 7]
    assert about["classes"] == [7, 3] and about["class_names"] == ["7", "3"]
    assert (about["classifier"], about["classifier_scale"]) == (str(classifier_run), 1.0)
    strong, stronger = sampled(
        tiny_run, tmp_path / "two", classifier_run, asked, "--config.sampling.classifier_scale=9"
    )
    assert not np.array_equal(strong["arr_0"], found["arr_0"])
    assert stronger["fingerprint"]["sampling.classifier_scale"] == 9
    assert f", guided by the classifier of {classifier_run}, scale 9, 5 network calls each" in capsys.readouterr().err
    # where no sample is inside the interval it is not asked, and the samples are those without it
    nowhere = "--config.sampling.guidance_interval=1e8,1e9"
    none, about = sampled(tiny_run, tmp_path / "nowhere", classifier_run, asked, nowhere)
    assert about["guidance"]["interval"] == [1e8, 1e9]
    plain, about = sampled(tiny_run, tmp_path / "plain", "")
    np.testing.assert_array_equal(none["arr_0"], plain["arr_0"])
    assert about["guidance"] is None
    # at scale 0 it is not asked, and the samples are those without it
    none, _ = sampled(tiny_run, tmp_path / "three", classifier_run, asked, "--config.sampling.classifier_scale=0")
    np.testing.assert_array_equal(none["arr_0"], plain["arr_0"])
    # image k is the same at any batch size
    again, _ = sampled(tiny_run, tmp_path / "five", classifier_run, asked, "--config.sampling.batch_size=2")
    assert np.abs(again["arr_0"].astype(int) - found["arr_0"]).max() <= 1


def test_samples_are_of_the_classifier_s_weights_wherever_they_lie(
    tiny_run: Path, classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = Path(shutil.copytree(classifier_run, tmp_path / "moved"))
    sampled(tiny_run, tmp_path / "out", classifier_run)
    sampled(tiny_run, tmp_path / "out", other)
    assert f"these samples are in {tmp_path / 'out'} already" in capsys.readouterr().err
    shutil.rmtree(max((other / "checkpoints").glob("step_*")))
    capsys.readouterr()
    sampled(tiny_run, tmp_path / "out", other)
    assert "already" not in capsys.readouterr().err


def test_what_cannot_guide_is_one_line(
    tiny_run: Path, classifier_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other_sde = tmp_path / "other_sde"
    assert main.run(classifier_command("train", other_sde, "--config.sde.beta_start=1e-3")) == 0

    def said(classifier: Path | str, *extra: str) -> str:
        flags = [f"--config.sampling.classifier={classifier}", f"--output={tmp_path / 'out'}", *extra]
        found = error(capsys, tiny_command("sample", tiny_run, *flags))
        assert not (tmp_path / "out").exists()
        return found

    assert f"there is no classifier in {tiny_run}, but a score model" in said(tiny_run)
    assert f"there is no classifier in {tmp_path} ({tmp_path} holds no trained run" in said(tmp_path)
    assert "cannot guide the model: the classifier must be of the model's SDE" in said(other_sde)
    assert "unknown class '10' in sampling.classes" in said(classifier_run, "--config.sampling.classes=10")
    scale = "--config.sampling.classifier_scale"
    assert "sampling.classifier_scale=2.0 needs sampling.classifier" in said("", f"{scale}=2")
    assert "config.sampling.classifier_scale must be at least 0, got -1.0" in said(classifier_run, f"{scale}=-1")
    guided = f"--config.sampling.classifier={classifier_run}"
    assert "a guided model has no likelihood" in error(capsys, tiny_command("eval", tiny_run, guided))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image_shape": [1, 16, 16]}, "and the model differ in image shape: (1, 16, 16) and (1, 8, 8); take one"),
        ({"num_classes": 9}, "and the model differ in number of classes: 9 and 10; take one"),
        ({"class_names": list("9876543210")}, "and the model differ in names of classes: ('9', '8'"),
    ],
)
def test_a_classifier_of_other_data_is_one_line(
    tmp_path: Path,
    classifier_run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, Any],
    message: str,
):
    assert main.run(tiny_command("train", tmp_path / "run", CONDITIONAL)) == 0
    kind = trained_kind(saved_config(classifier_run), classifier_run)
    for name, value in changes.items():
        object.__setattr__(kind, name, tuple(value) if isinstance(value, list) else value)
    monkeypatch.setattr("experiment.guidance.classifier.classifier_kind", lambda _: kind)
    guided = [CONDITIONAL, f"--config.sampling.classifier={classifier_run}"]
    assert message in error(capsys, tiny_command("sample", tmp_path / "run", *guided))


def imported(name: str, config: str, folder: Path) -> list[str]:
    """The flags of a work directory with a reference network of guided-diffusion, of 16x16 pixels and ten classes."""
    reference, workdir = Reference(name), folder / name
    (folder / f"{name}.json").write_text(json.dumps(reference.config))
    command = [
        f"--config={ROOT / 'configs/pretrained' / config}", f"--workdir={workdir}", "--config.data.image_size=16",
        f"--config.source.config={folder / name}.json", "--config.device=cpu",
    ]  # fmt: skip
    assert main.run([*command, "--mode=import", f"--checkpoint={reference.path}"]) == 0
    return command


def test_a_classifier_of_guided_diffusion_is_imported_number_for_number_and_guides(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    imported("guided_classifier", "guided_imagenet64_classifier.py", tmp_path)
    assert "classifier of 381,834 parameters" in capsys.readouterr().err
    reference, workdir = Reference("guided_classifier"), tmp_path / "guided_classifier"
    classifier = load_classifier(workdir, torch.device("cpu"))

    def logits(case):
        return classifier(case["x"], (case["t"] + 1).double() / 1000)

    def gradient(case):
        return classifier.grad_log_prob(case["x"], (case["t"] + 1).double() / 1000, case["y"])

    assert worst_error(reference, logits) < 5e-5
    assert worst_error(reference, gradient, "grad_f64") < 5e-5

    command = imported("guided_imagenet_cond", "guided_imagenet64.py", tmp_path)
    command += ["--mode=sample", "--config.sampling.num_steps=2", "--config.sampling.num_samples=2"]
    images = []
    for classifier_flags in ([], [f"--config.sampling.classifier={workdir}"]):
        out = tmp_path / str(len(classifier_flags))
        assert main.run([*command, f"--output={out}", *classifier_flags]) == 0
        images.append(np.load(out / "samples.npz")["arr_0"])
    assert not np.array_equal(*images)
