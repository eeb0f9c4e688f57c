"""The benchmarks' own reckoning, and one whole small run."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import ROOT

from benchmarks import overhead, quality, quality_report
from samplers import GridSampler, Sampler, make_sampler
from sde_lib import VE, VP


class _Twice(GridSampler):
    """Two calls a step, but one in the last."""

    def step(self, denoise, x, t, s, noise):
        denoise(x, t)
        return 0 * denoise(x, t).eps


@pytest.mark.parametrize(
    ("budget", "num_steps", "calls"), [(1, 1, 1), (2, 1, 1), (5, 3, 5), (20, 10, 19), (51, 26, 51)]
)
def test_a_budget_buys_as_many_steps_as_it_can(budget: int, num_steps: int, calls: int):
    assert quality.steps_within(budget, lambda n: _Twice(num_steps=n), VP()) == num_steps
    assert quality.network_calls(_Twice(num_steps=num_steps), VP()) == calls


def test_the_final_denoising_is_part_of_the_budget():
    def build(num_steps: int) -> Sampler:
        return make_sampler("ddim", num_steps=num_steps)

    assert quality.steps_within(10, build, VE()) == 9
    assert quality.steps_within(1, build, VE()) == 0


def test_labels_are_unique_and_grids_known():
    from sde_lib import available_grids

    assert len({entry.label for entry in quality.ENTRIES}) == len(quality.ENTRIES)
    assert {entry.grid for entry in quality.ENTRIES} <= set(available_grids())


def test_both_sides_of_a_pair_call_the_network_equally_often(monkeypatch: pytest.MonkeyPatch):
    calls: list[int] = []
    forward = overhead.Instant.forward

    def counted(*args: Any) -> torch.Tensor:
        calls[-1] += 1
        return forward(*args)

    def once_each(sides: dict[str, Any], rounds: int) -> dict[str, list[float]]:
        for measure in sides.values():
            calls.append(0)
            measure()
        return {side: [9.0, 1.0] for side in sides}

    monkeypatch.setattr(overhead, "SHAPE", (2, 3, 4, 4))
    monkeypatch.setattr(overhead.Instant, "forward", counted)
    monkeypatch.setattr(overhead, "in_turn", once_each)
    rows = overhead.measure_steps(overhead.PAIRS, 7, 1)
    assert [row["sampler"] for row in rows] == [pair.label for pair in overhead.PAIRS]
    assert calls[::2] == calls[1::2]
    assert set(calls) == {7, 13}


def test_a_page_keeps_what_is_outside_the_markers():
    begin, end = quality_report.BEGIN, quality_report.END
    page = f"# A\n\n{begin}\nold\n{end}\n\nbelow\n"
    assert quality_report.replace_between_markers(page, "new") == f"# A\n\n{begin}\nnew\n{end}\n\nbelow\n"
    for broken in ("# A\n", begin, end + begin):
        with pytest.raises(ValueError, match="in this order; put them there by hand"):
            quality_report.replace_between_markers(broken, "x")


def test_the_tables_of_the_samplers_page_are_those_of_the_figures_beside_it():
    page = (ROOT / "docs" / "samplers.md").read_text()
    report = json.loads((ROOT / "benchmarks" / "results" / "quality.json").read_text())
    assert quality_report.replace_between_markers(page, quality_report.tables(report)) == page


@pytest.mark.slow
def test_a_whole_run(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    entries = (quality.Entry("first", "ddim", budgets=(1, 3)), quality.Entry("third", "ancestral", budgets=(3,)))
    monkeypatch.setattr(quality, "ENTRIES", entries)
    quality.main([f"--workdir={tiny_run}", f"--output={tmp_path}", "--num-samples=361"])

    report = json.loads((tmp_path / "benchmarks" / "results" / "quality.json").read_text())
    assert (report["num_samples"], report["group_size"], report["num_reference"]) == (720, 360, 1437)
    assert [(p["label"], p["budget"], p["nfe"]) for p in report["points"]] == [
        ("first", 1, 1),
        ("first", 3, 3),
        ("third", 3, 3),
    ]
    # a network of six steps draws nothing like digits
    for key in ("frechet", "sliced"):
        floor = report["floor"][key]
        assert all(p[key]["value"] > floor["value"] + 5 * p[key]["stderr"] for p in report["points"])
    page = (tmp_path / "docs" / "samplers.md").read_text()
    value = report["points"][0]["frechet"]
    assert f"| first | uniform | {value['value']:.2f} ± {value['stderr']:.2f} | " in page
    assert (tmp_path / "docs" / "images" / "quality.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_measure_is_at_its_floor_on_held_out_images_alone():
    from data import LevelSpace, load_dataset

    train, held_out = (load_dataset("digits", root="unused", split=split) for split in ("train", "test"))
    measure = quality.Quality(train, held_out, num_projections=20)
    x0 = LevelSpace(17).encode(held_out.images)
    # less than half a grey level, and values beyond the range, are rounded away
    assert measure(x0 + 0.06 * torch.rand(x0.shape, generator=torch.Generator().manual_seed(0))) == measure.floor
    assert measure(-x0)[0].value > 10 * measure.floor[0].value
