"""The benchmark of latents beside pixels: what it counts as recognised, and one whole small run."""

import json
from pathlib import Path

import pytest
from tiny import tiny_command

import main
from benchmarks import latents
from data import ImageDataset, load_dataset

TOLD = "--config.model.class_conditional=True"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Flags of a run of pixels and one of latents, both told the class."""
    folder = tmp_path_factory.mktemp("latents")
    first, pixels, seen = (folder / name for name in ("autoencoder", "pixels", "latents"))
    few = ("--config.training.num_steps=1",)
    assert main.run(tiny_command("train", first, *few, config="latent/digits_autoencoder")) == 0
    assert main.run(tiny_command("train", pixels, *few, TOLD, config="vp/digits")) == 0
    named = f"--config.data.first_stage={first}"
    assert main.run(tiny_command("train", seen, *few, TOLD, named, config="latent/digits")) == 0
    return [f"--pixels={pixels}", f"--latents={seen}"]


def _run(runs: list[str], output: Path) -> dict:
    latents.main([*runs, "--per-class=2", "--timed=1", "--rounds=1", "--num-steps=2", f"--output={output}"])
    return json.loads(output.read_text())


def test_true_images_are_recognised_and_those_of_other_classes_are_not(
    runs: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    test = load_dataset("digits", root=".", split="test")
    assert isinstance(test, ImageDataset)
    x0 = test.space.encode(test.images)
    for shift in (0, 1):
        labels = (test.labels + shift) % 10
        monkeypatch.setattr(latents, "draw", lambda *_, labels=labels, **__: (x0, labels, None))
        found = _run(runs, tmp_path / f"{shift}.json")
        for one in found["runs"].values():
            right = one["recognised"]["value"]
            assert right == pytest.approx(found["judge_accuracy"]) if not shift else right < 0.05


def test_a_small_run_times_both_and_counts_their_samples(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    found = _run(runs, tmp_path / "report.json")
    assert found["dataset"] == "digits" and set(found["runs"]) == {"pixels", "latents"}
    parameters = {name: one["parameters"] for name, one in found["runs"].items()}
    assert all(one["seconds"] > 0 and one["step"] == 1 for one in found["runs"].values()) and len(set(parameters)) == 2
    slowest = max(one["seconds"] for one in found["runs"].values())
    said = capsys.readouterr().out
    for name, one in found["runs"].items():
        assert f"| {name} | {one['parameters']:,} | {slowest / one['seconds']:.1f} |" in said
    with pytest.raises(SystemExit, match="--pixels needs a run that is told classes alone"):
        alone = tmp_path / "alone"
        assert main.run(tiny_command("train", alone, "--config.training.num_steps=1", config="vp/digits")) == 0
        latents.main([f"--pixels={alone}", runs[1], f"--output={tmp_path / 'other.json'}"])
