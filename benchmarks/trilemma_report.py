"""The report of ``benchmarks.trilemma``: JSON, a picture, and a table in Markdown."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.quality_report import replace_between_markers
from benchmarks.timing import table
from experiment import pictures
from experiment.workdir import write_atomically, write_json

# key, head of the column, scale, digits, and whether more is better (1), less (-1), or neither
_MEASURES = (
    ("frechet", "Fréchet", 1, 2, -1),
    ("kernel", "KID, x 1000", 1000, 1, -1),
    ("sliced", "sliced W., x 1000", 1000, 2, -1),
    ("precision", "precision", 1, 3, 1),
    ("recall", "recall", 1, 3, 1),
    ("density", "density", 1, 2, 0),
    ("coverage", "coverage", 1, 3, 1),
)
_SHOWN = (("frechet", "squared Fréchet distance"), ("recall", "recall"), ("coverage", "coverage"))
_MARKERS = "osD^v<>Pph"


def name_of(report: dict[str, Any]) -> str:
    """The name of the report's files, and of its markers on the page: ``trilemma``, and the data set if not digits."""
    return "trilemma" if report["dataset"] == "digits" else f"trilemma_{report['dataset']}"


def write_report(report: dict[str, Any], root: Path) -> None:
    """Write the JSON, the picture, and the part of ``docs/few_steps.md``.

    Args:
        report: That of ``benchmarks.trilemma.main``.
        root: The folder that holds, or will hold, ``benchmarks/`` and ``docs/``.
    """
    name = name_of(report)
    write_json(root / "benchmarks" / "results" / f"{name}.json", report)
    pictures.save_figure(root / "docs" / "images" / f"{name}.png", figure(report))
    page, (begin, end) = root / "docs" / "few_steps.md", markers(name)
    text = page.read_text() if page.is_file() else f"# Few steps\n\n{begin}\n{end}\n"
    write_atomically(page, replace_between_markers(text, section(report), begin=begin, end=end).encode())


def markers(name: str) -> tuple[str, str]:
    """The lines of the page that a report's section is between."""
    return f"<!-- {name}:begin -->", f"<!-- {name}:end -->"


def _cell(found: dict[str, float], floor: dict[str, float], scale: float, digits: int, better: int) -> str:
    """Value ± s.e.; bold where it is not worse than the floor by two standard errors of the difference."""
    text = f"{found['value'] * scale:.{digits}f} ± {found['stderr'] * scale:.{digits}f}"
    gap = floor["value"] - found["value"]
    worse = abs(gap) if better == 0 else gap * better
    return f"**{text}**" if worse < 2 * math.hypot(found["stderr"], floor["stderr"]) else text


def _bits(bits: dict[str, Any] | None) -> str:
    if bits is None:
        return "none: not a density"
    bound = "≤ " if bits["by"] != "ode" else ""
    return f"{bound}{bits['value']:.3f} ± {bits['stderr']:.3f}"


def rows_of_table(report: dict[str, Any]) -> str:
    """The table, a row for each way to draw, and one for held-out images in place of samples."""
    floor = report["floor"]

    def measured(found: dict[str, Any]) -> dict[str, str]:
        return {head: _cell(found[key], floor[key], *how) for key, head, *how in _MEASURES}

    rows = []
    for row in report["rows"]:
        cells = {
            "": row["label"],
            "NFE": str(row["nfe"]),
            "s for 1,000": f"{row['seconds_per_1000']['median']:.3g}",
            "ms for one": f"{1000 * row['seconds_of_one']['median']:.3g}",
        }
        if "times_faster" in row:
            cells["times faster"] = f"{row['times_faster']['median']:.3g}"
        rows.append(cells | measured(row["measures"]) | {"bits/dim": _bits(row["bits"])})
    plain = {head: measured(floor)[head].strip("*") for _, head, *_ in _MEASURES}
    return table([*rows, {"": "held-out images"} | plain])


def section(report: dict[str, Any]) -> str:
    """The part of the page: what was measured, the command, the picture and the table."""
    name, clock = name_of(report), report["clock"]
    on_test = {row["bits"]["num_images"] for row in report["rows"] if row["bits"]}
    about = (
        f"{report['num_samples']:,} images a row, of the network of `{report['config']}` at step "
        f"{report['steps']['base']:,} where the row does not say otherwise, rounded to the data's grey levels, against "
        f"{report['num_reference']:,} training images. Fréchet, sliced Wasserstein, recall and coverage are means over "
        f"groups of {report['group_size']}. ± is one standard error over draws of the samples. k = "
        f"{report['num_neighbours']} neighbours; of the training images' own law density is 1 and coverage "
        f"{report['coverage_of_one_law']:.3f}. The classifier whose features these are names "
        f"{report['classifier_accuracy']:.1%} of the held-out images right. **Bold**: not to be told from held-out "
        f"images, within two standard errors. Seconds are the median of {report['rounds']} rounds in turn, of the "
        f"{clock}{' clock' if clock == 'wall' else ''}, with {report['threads']} thread"
        f"{'s' if report['threads'] > 1 else ''} on {report['processor']}: for 1,000 images 1000 / "
        f"{report['batch_size']} times those of a batch of {report['batch_size']}."
    )
    if on_test:
        few = " to ".join(f"{number:,}" for number in sorted({min(on_test), max(on_test)}))
        about += (
            f" bits/dim, of {few} held-out images, are the model's: of `ancestral` the bound of its chain, of the "
            "others the probability flow's, which their few steps approximate."
        )
    if report["left_out"]:
        about += f" Not measured: {'; '.join(report['left_out'])}."
    return "\n".join(
        [
            *textwrap.wrap(about, 120, break_on_hyphens=False, break_long_words=False),
            "",
            "```sh",
            _command(report),
            "```",
            "",
            f"![Quality and coverage over seconds](images/{name}.png)",
            "",
            rows_of_table(report),
        ]
    )


def _command(report: dict[str, Any]) -> str:
    """The command that made the report."""
    runs = " ".join(f"--{name} {workdir}" for name, workdir in report["runs"].items())
    keys = ("config", "num_samples", "batch_size", "rounds", "threads")
    settings = " ".join(f"--{key.replace('_', '-')} {report[key]}" for key in keys)
    return f"python -m benchmarks.trilemma {settings} {runs}".strip()


def figure(report: dict[str, Any]) -> Figure:
    """A Frechet distance, recall and coverage over seconds for 1,000 images, with one standard error either side."""
    drawn = Figure(figsize=(15, 4.6), layout="constrained")
    panels = drawn.subplots(1, len(_SHOWN))
    for axes, (key, title) in zip(panels, _SHOWN, strict=True):
        for index, row in enumerate(report["rows"]):
            took, found = row["seconds_per_1000"], row["measures"][key]
            sides = [[took["median"] - took["least"]], [took["most"] - took["median"]]]
            axes.errorbar(
                took["median"], found["value"], yerr=found["stderr"], xerr=sides, label=row["label"],
                color=f"C{index % 10}", marker=_MARKERS[index % 10], markersize=6, elinewidth=1, capsize=2, lw=0,
            )  # fmt: skip
        _decorate(axes, report["floor"][key], report["group_size"])
        axes.set(xscale="log", xlabel="seconds for 1,000 images", ylabel=title)
        if key == "frechet":
            axes.set_yscale("log")
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
    handles, labels = panels[0].get_legend_handles_labels()
    drawn.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    drawn.suptitle(f"{report['dataset']}: {report['num_samples']:,} samples, ± one standard error", fontsize=11)
    return drawn


def _decorate(axes: Axes, floor: dict[str, float], group_size: int) -> None:
    value, error = floor["value"], floor["stderr"]
    axes.axhspan(max(value - error, value / 10), value + error, color="0.85", zorder=0, lw=0)
    axes.axhline(value, color="0.35", lw=1, zorder=0, label=f"{group_size} held-out images")
    axes.grid(alpha=0.3, lw=0.5)
