"""The pages of docs/ that show code are run, as they stand."""

import re
from pathlib import Path
from typing import Any

import pytest
from ml_collections import ConfigDict

from configs.default import get_default_config
from docs import config_page

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


def _blocks(page: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)


def test_the_sampler_of_its_page_has_15_lines():
    sampler, *_ = _blocks("docs/howto/own_sampler.md", "python")
    assert len([line for line in sampler.splitlines() if line.strip() and not line.startswith("#")]) <= 15


def test_the_bound_of_the_notebook_page_is_near_the_entropy(capsys: pytest.CaptureFixture[str]):
    *_, code = _blocks("docs/howto/notebook.md", "python")
    exec(compile(code, "docs/howto/notebook.md", "exec"), {})
    mean, stderr, entropy = (
        float(number) for number in re.findall(r"\d+\.\d+", capsys.readouterr().out.splitlines()[0])
    )
    assert entropy == pytest.approx(4.087, abs=2e-3)
    # the bound's gap with the small variance at T = 1000, near 0.2 bits, within its own error
    assert entropy - 4 * stderr < mean < entropy + 0.4 + 4 * stderr


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", *sorted(
    path.relative_to(ROOT).as_posix() for path in (ROOT / "docs").rglob("*.md")
)])  # fmt: skip
def test_links_and_pictures_of_a_page_exist(page: str):
    for target in re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text()):
        if "://" not in target:
            assert ((ROOT / page).parent / target).exists(), f"{page} links to {target}, which is not there"


def test_the_examples_of_the_samplers_page_hold():
    blocks = _blocks("docs/samplers.md", "python")
    assert len(blocks) == 2
    for code in blocks:
        exec(compile(code, "docs/samplers.md", "exec"), {})


def test_the_measures_of_the_few_steps_page_tell_one_law(capsys: pytest.CaptureFixture[str]):
    (code,) = _blocks("docs/few_steps.md", "python")
    exec(compile(code, "docs/few_steps.md", "exec"), {})
    found = re.findall(r"value=(\S+), stderr=(\S+)\)", capsys.readouterr().out)
    distance, precision, density, coverage, recall = ((float(value), float(error)) for value, error in found)
    # of 200 samples beside 1000 points coverage is 1 - (999 ... 995) / (1199 ... 1195)
    for (value, error), truth in ((distance, 0), (density, 1), (coverage, 0.599)):
        assert abs(value - truth) < 3 * error
    assert 0.5 < recall[0] < precision[0] <= 1


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_of_the_project_that_a_page_names_exist(page: Path):
    tops = {path.name for path in ROOT.iterdir() if path.is_dir()}
    named = re.findall(r"[\w./]+/[\w.]+\.py\b", page.read_text())
    missing = [name for name in named if name.split("/")[0] in tops and not (ROOT / name).is_file()]
    assert not missing


def test_the_config_page_is_what_its_program_writes():
    page = config_page.write_page()
    assert (ROOT / "docs" / "config.md").read_text() == page, "run python -m docs.config_page"
    assert all(line.count(" | ") >= 2 and not line.endswith("|  |") for line in page.splitlines() if line[:2] == "| ")


def test_every_key_of_the_config_is_on_its_page():
    def keys(section: Any, prefix: str = "") -> list[str]:
        return [
            key
            for name, value in section.items()
            for key in (keys(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) and value else [prefix + name])
        ]

    on_page = re.findall(r"^\| `([\w.]+)` \|", (ROOT / "docs" / "config.md").read_text(), flags=re.MULTILINE)
    assert set(keys(get_default_config())) <= {*on_page, "sde.name"}


def test_the_rooms_of_the_design_page_hold_the_files_that_it_names():
    (rooms,) = re.findall(r"## Rooms\n\n```\n(.*?)```", (ROOT / "docs" / "design.md").read_text(), flags=re.DOTALL)
    for room, text in re.findall(r"^(\w+)/ (.*?)(?=^\S|\Z)", rooms, flags=re.DOTALL | re.MULTILINE):
        there = {path.name for path in (ROOT / room).rglob("*.*")}
        assert set(re.findall(r"\b\w+\.py\b", text)) <= there, room


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_prose_is_wrapped(page: Path):
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    long = [line for line in prose.splitlines() if len(line) > 160 and not line.startswith("|")]
    assert not long
