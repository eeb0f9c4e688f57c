"""The benchmark of captioned scenes: grades of true and of drawn pictures, and bits that captions save."""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_command
from torch import Tensor

import main
from benchmarks import scenes
from benchmarks.paired_bits import image_bits
from data import ImageDataset, load_dataset
from data.sources.scene_words import Scene, scenes_of
from evaluation.scenes import SceneReader
from experiment import TrainedRun, load_run
from models import Condition

TRUE = ("size", "colour", "relation")
HOW = argparse.Namespace(num_prompts=400, pictures=None, steps_per_image=3, batch_size=2, seed=0)


def says_zero(crops: Tensor) -> Tensor:
    return torch.nn.functional.one_hot(torch.zeros(len(crops), dtype=torch.int64), 10)


def true_pictures(asked: Sequence[Scene]) -> Tensor:
    """The pictures of the test split that show these scenes."""
    pairs = "seen" if asked == scenes_of("test", len(asked)) else "held_out"
    assert asked == scenes_of("test", len(asked), pairs=pairs)
    dataset = load_dataset("scenes", root="-", split="test", options={"num_images": 20 * len(asked), "pairs": pairs})
    assert isinstance(dataset, ImageDataset)
    return dataset.space.encode(dataset.images)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    workdir = tmp_path_factory.mktemp("obedience") / "run"
    extra = ("--config.data.options=num_images=60", "--config.model.attention_resolutions=8")
    settings = ("--config.model.condition_dropout=0.5", "--config.optim.decay_steps=0")
    assert main.run(tiny_command("train", workdir, *extra, *settings, config="text/scenes")) == 0
    return workdir


@pytest.fixture
def run(workdir: Path) -> TrainedRun:
    return load_run(workdir, device="cpu")


@pytest.fixture
def held_out(run: TrainedRun) -> ImageDataset:
    dataset = load_dataset("scenes", root="-", split="test", options={"num_images": 60})
    assert isinstance(dataset, ImageDataset) and run.kind.text is not None
    return dataset.with_words(run.kind.text.vocabulary)


def test_true_pictures_are_obedient_and_those_of_other_captions_are_at_chance(
    run: TrainedRun, monkeypatch: pytest.MonkeyPatch
):
    def draw(_: TrainedRun, asked: Sequence[Scene], *__: Any, **___: Any) -> Tensor:
        return true_pictures(asked)

    monkeypatch.setattr(scenes, "draw_scenes", draw)
    reader: Any = SceneReader(says_zero, (3, 16, 16))  # type: ignore[arg-type]
    grades = scenes.obedience(run, reader, HOW, 1.0)
    for pairs in ("seen", "held_out"):
        assert [grades[pairs][name] for name in TRUE] == [{"value": 1, "stderr": 0}] * 3
    for name in TRUE:
        found = grades["shuffled"][name]
        assert 0 < found["stderr"] < 0.03 and abs(found["value"] - grades["chance"][name]) < 4 * found["stderr"]


def test_bits_that_a_caption_saves_are_of_the_same_noise(run: TrainedRun, held_out: ImageDataset):
    def without(cond: Any) -> Condition:
        return Condition(words=torch.zeros_like(cond.words))

    def bits(told: Any) -> Tensor:
        return image_bits(run, held_out, told=told, steps_per_image=3, batch_size=2, seed=0)

    saved = bits(without) - bits(lambda cond: cond)
    found = scenes.information(run, held_out, HOW)
    assert found.value == pytest.approx(saved.mean().item(), rel=1e-12) and found.value != 0
    assert found.stderr == pytest.approx(saved.std().item() / len(saved) ** 0.5, rel=1e-12)


def test_a_network_that_hears_no_caption_saves_none(run: TrainedRun, held_out: ImageDataset):
    def deaf(_: Any, arguments: tuple[Any, ...], told: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return arguments, told | {"words": torch.zeros_like(told["words"])}

    run.model.backbone.register_forward_pre_hook(deaf, with_kwargs=True)
    found = scenes.information(run, held_out, HOW)
    assert (found.value, found.stderr) == (0, 0)


def test_the_benchmark_grades_and_measures_a_run(workdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    reader: Any = SceneReader(says_zero, (3, 16, 16))  # type: ignore[arg-type]
    monkeypatch.setattr(scenes, "train_scene_reader", lambda train, num_steps: reader)
    output = tmp_path / "scenes.json"
    short = ["--num-prompts=3", "--num-images=2", "--steps-per-image=1", "--num-steps=2", "--weights=2"]
    scenes.main([f"--workdir={workdir}", f"--output={output}", f"--pictures={tmp_path / 'pictures'}", *short])
    report = json.loads(output.read_text())
    assert set(report["guidance"]["2"]) == {"seen", "held_out", "shuffled", "chance"}
    assert [report["reader"][name]["value"] for name in TRUE] == [1, 1, 1]
    assert report["information"]["most_bits"] == pytest.approx(14.51, abs=0.01)
    assert {path.name for path in (tmp_path / "pictures").iterdir()} == {"scenes_seen.png", "scenes_held_out.png"}
