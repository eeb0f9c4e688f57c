"""The benchmark of quality, coverage and speed: its parts, and one whole small run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT, tiny_command

import main
from benchmarks import sample_measures, trilemma, trilemma_report
from benchmarks.sample_measures import SampleMeasures
from data import ImageDataset, LevelSpace, load_dataset
from evaluation.nearest import coverage_of_one_law
from experiment import load_run
from models import ConsistencyModel, Generator, NetworkScoreModel
from sde_lib import NoiseStreams


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    train, held_out = (load_dataset("digits", root="unused", split=split) for split in ("train", "test"))
    assert isinstance(train, ImageDataset) and isinstance(held_out, ImageDataset)
    return train.subset(720), held_out


@pytest.fixture(scope="module")
def measures(digits: tuple[ImageDataset, ImageDataset]) -> SampleMeasures:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_measures, "_MOST_EPOCHS", 3)
        return SampleMeasures(*digits, group_size=180, num_projections=20)


def test_held_out_images_are_the_floor_and_what_is_wrong_shows_where_it_should(
    measures: SampleMeasures, digits: tuple[ImageDataset, ImageDataset]
):
    train, held_out = digits
    encode = LevelSpace(17).encode
    floor, real = measures.floor, encode(held_out.images)
    # every second one, then the others
    assert measures(torch.cat([real[::2], real[1::2]])) == floor
    assert measures.about()["coverage_of_one_law"] == coverage_of_one_law(180, 180)
    # half of the digits, all of them good
    found = measures(encode(train.images[train.labels < 5][:360]))
    assert found["precision"]["value"] > floor["precision"]["value"] - 3 * floor["precision"]["stderr"]
    for name in ("recall", "coverage"):
        assert found[name]["value"] < 0.7 * floor[name]["value"], name
    noise = measures(real + 0.8 * torch.randn(real.shape, generator=torch.Generator().manual_seed(0)))
    assert noise["precision"]["value"] < floor["precision"]["value"] - 5 * floor["precision"]["stderr"]
    for wrong in (found, noise):
        for name in ("frechet", "kernel", "sliced"):
            assert wrong[name]["value"] > floor[name]["value"] + 3 * wrong[name]["stderr"], name


def test_rows_call_the_network_as_often_as_they_say(tiny_run: Path):
    run = load_run(tiny_run)
    for row in trilemma.ROWS:
        if row.of == trilemma.BASE and row.settings["num_steps"] < 1000:
            assert trilemma.network_calls(run, trilemma.drawer(row, run)) == row.settings["num_steps"], row.label


def test_maps_are_drawn_by_their_own_sampler_and_score_models_are_not_taken_for_them(tiny_run: Path):
    run = load_run(tiny_run)
    of_maps: Any = replace(run, model=ConsistencyModel(run.model))  # pyright: ignore[reportArgumentType]
    rows = [row for row in trilemma.ROWS if row.of == "consistency"]
    for row in rows:
        assert trilemma.network_calls(of_maps, trilemma.drawer(row, of_maps)) == row.settings["num_steps"]
    x0 = trilemma.drawer(rows[0], of_maps)(range(3))
    # a new map is its network's own answer at t_max, within the bounds of x0
    x_T = NoiseStreams(0, range(3)).normal(run.sample_shape)
    expected = run.model(x_T, torch.full((3,), run.sde.t_max, dtype=torch.float64)).x0.clamp(-1, 1)
    torch.testing.assert_close(x0, expected, rtol=1e-4, atol=1e-4)
    (generator,) = [row for row in trilemma.ROWS if row.of == "dmd"]
    of_one: Any = replace(run, model=Generator(run.model))  # pyright: ignore[reportArgumentType]
    assert trilemma.network_calls(of_one, trilemma.drawer(generator, of_one)) == 1
    torch.testing.assert_close(trilemma.drawer(generator, of_one)(range(3)), expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="sampler 'consistency' needs a consistency model, got a"):
        trilemma.drawer(rows[0], run)(range(3))


def test_a_progressive_student_is_drawn_by_the_steps_that_it_answers(tiny_run: Path):
    run = load_run(tiny_run)
    (row,) = [row for row in trilemma.ROWS if row.of == "progressive"]
    for own_steps in (4, 2):
        ours = run.model
        student = NetworkScoreModel(
            ours.backbone, ours.sde, ours.parameterization, answers="steps", own_steps=own_steps
        ).eval()
        of_steps = replace(run, model=student)
        if own_steps == 4:
            assert trilemma.network_calls(of_steps, trilemma.drawer(row, of_steps)) == 4
        else:
            with pytest.raises(ValueError, match="answers 2 steps of"):
                trilemma.drawer(row, of_steps)(range(1))


def test_images_are_functions_of_their_numbers(tiny_run: Path):
    run = load_run(tiny_run)
    draw = trilemma.drawer(trilemma.Row("", trilemma.BASE, "ancestral", {"num_steps": 3}, None), run)
    together = trilemma.in_batches(draw, 5, 5, name="")
    torch.testing.assert_close(trilemma.in_batches(draw, 5, 2, name=""), together, rtol=1e-5, atol=1e-5)


def test_times_are_of_whole_thousands_and_ratios_of_one_round(monkeypatch: pytest.MonkeyPatch):
    clock = iter([2.0, 0.5, 1.0, 0.25, 6.0, 0.5, 2.0, 0.25])  # a batch and one image of two rows, twice
    monkeypatch.setattr(trilemma, "seconds", lambda work, processor: next(clock))
    draws: dict[str, Any] = dict.fromkeys((trilemma.COMPARED_WITH, "fast"), list)
    found = trilemma.times_of(draws, batch_size=100, rounds=2, processor=True)
    assert found["fast"] == {
        "seconds_per_1000": {"median": 15, "least": 10, "most": 20},
        "seconds_of_one": {"median": 0.25, "least": 0.25, "most": 0.25},
        "times_faster": {"median": 2.5, "least": 2, "most": 3},
    }


def test_bits_are_those_of_the_evaluation_if_there_is_one(
    tiny_run: Path, digits: tuple[ImageDataset, ImageDataset], monkeypatch: pytest.MonkeyPatch
):
    run, held_out = load_run(tiny_run), digits[1]
    bits = run.bits_per_dim(held_out.images[:6], likelihood="vlb", progress=False)
    found = trilemma.bits_of(run, "vlb", held_out, 6)
    stderr = pytest.approx(float(bits.std()) / 6**0.5)
    assert found == {"value": pytest.approx(float(bits.mean())), "stderr": stderr, "num_images": 6, "by": "vlb"}
    kept = {"split": "test", "num_images": 360, "vlb": {"bits_per_dim": 2.5, "stderr": 0.1, "nfe": 7}}
    monkeypatch.setitem(run.__dict__, "report", kept)
    found = trilemma.bits_of(run, "vlb", held_out, 6)
    assert found == {"value": 2.5, "stderr": 0.1, "num_images": 360, "by": "vlb"}


def test_cells_are_bold_where_they_are_not_worse_than_held_out_images():
    def bold(value: float, better: int) -> bool:
        cell = trilemma_report._cell({"value": value, "stderr": 3.0}, {"value": 50.0, "stderr": 4.0}, 1, 1, better)
        return cell == f"**{value:.1f} ± 3.0**"

    assert [bold(value, -1) for value in (30, 59, 61)] == [True, True, False]
    assert [bold(value, 1) for value in (70, 41, 39)] == [True, True, False]
    assert [bold(value, 0) for value in (61, 59, 41, 39)] == [False, True, True, False]


@pytest.mark.parametrize("name", ["trilemma", "trilemma_mnist"])
def test_the_tables_of_the_page_are_those_of_the_figures_beside_it(name: str):
    page, (begin, end) = (ROOT / "docs" / "few_steps.md").read_text(), trilemma_report.markers(name)
    assert page.count(begin) == page.count(end) == 1
    result = ROOT / "benchmarks" / "results" / f"{name}.json"
    if result.is_file():
        section = trilemma_report.section(json.loads(result.read_text()))
        assert trilemma_report.replace_between_markers(page, section, begin=begin, end=end) == page


@pytest.mark.slow
def test_a_whole_run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    monkeypatch.setattr(sample_measures, "_MOST_EPOCHS", 3)
    rows = (
        trilemma.Row("chain", trilemma.BASE, "ancestral", {"num_steps": 2}, "vlb"),
        trilemma.Row(trilemma.COMPARED_WITH, trilemma.BASE, "ddim", {"num_steps": 3}, None),
        trilemma.Row("flow", "flow", "ddim", {"num_steps": 1}, None),
        trilemma.Row("map", "consistency", "consistency", {"num_steps": 2}, None),
        trilemma.Row("student", "progressive", "ddim", {"num_steps": 4}, None),
    )
    monkeypatch.setattr(trilemma, "ROWS", rows)
    maps, flow = tmp_path / "maps", tiny_run
    loss = ["--config.model.answers=consistency", "--config.training.loss=consistency_training"]
    assert main.run(tiny_command("train", maps, *loss, "--config.model.dropout=0")) == 0
    options = [
        f"--flow={flow}",
        f"--consistency={maps}",
        "--num-samples=60",
        "--batch-size=60",
        "--rounds=1",
        "--num-images=4",
        "--threads=1",
    ]
    trilemma.main([f"--workdir={tiny_run}", f"--output={tmp_path}", *options])
    assert "left out, since its run was not named: student" in capsys.readouterr().out
    report = json.loads((tmp_path / "benchmarks" / "results" / "trilemma.json").read_text())
    assert [(row["label"], row["of"], row["nfe"]) for row in report["rows"]] == [
        ("chain", "base", 2),
        (trilemma.COMPARED_WITH, "base", 3),
        ("flow", "flow", 1),
        ("map", "consistency", 2),
    ]
    assert (report["num_samples"], report["group_size"], report["clock"]) == (60, 60, "processor")
    assert report["rows"][1]["times_faster"] == {"median": 1, "least": 1, "most": 1}
    # a network of six steps draws nothing like digits
    for row in report["rows"]:
        for name, sign in (("frechet", 1), ("kernel", 1), ("sliced", 1), ("precision", -1), ("coverage", -1)):
            found, floor = row["measures"][name], report["floor"][name]
            assert sign * (found["value"] - floor["value"]) > 3 * found["stderr"], name
    page = (tmp_path / "docs" / "few_steps.md").read_text()
    bits = report["rows"][0]["bits"]
    assert f"| ≤ {bits['value']:.3f} ± {bits['stderr']:.3f} |" in page and "| none: not a density |" in page
    assert "Not measured: student." in page and f"--flow {tiny_run.name} --consistency maps" in page
    assert (tmp_path / "docs" / "images" / "trilemma.png").is_file()


def test_runs_that_cannot_be_compared_are_refused_in_one_line(class_run: Path, tiny_run: Path):
    with pytest.raises(ValueError, match="flow must be a run that is told nothing; train it with"):
        trilemma.main([f"--workdir={tiny_run}", f"--flow={class_run}"])
    with pytest.raises(
        ValueError, match=r"--dmd must be a one-step generator .* got model\.answers=posterior_mean; name"
    ):
        trilemma.main([f"--workdir={tiny_run}", f"--dmd={tiny_run}"])
