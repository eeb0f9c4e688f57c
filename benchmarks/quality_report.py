"""The report of ``benchmarks.quality``: JSON, a figure, and tables in Markdown."""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from benchmarks.timing import table
from experiment.workdir import write_atomically, write_json

BEGIN, END = "<!-- quality:begin -->", "<!-- quality:end -->"
_MEASURES = (
    ("frechet", "Fréchet distance of features", 1),
    ("sliced", "sliced Wasserstein distance of pixels, times 1000", 1000),
)


def write_report(report: dict[str, Any], root: Path) -> None:
    """Write ``benchmarks/results/quality.json``, ``docs/images/quality.png``, and the part of ``docs/samplers.md``.

    Args:
        report: What ``benchmarks.quality.run`` made.
        root: The folder that holds, or will hold, ``benchmarks/`` and ``docs/``.
    """
    write_json(root / "benchmarks" / "results" / "quality.json", report)
    save_figure(root / "docs" / "images" / "quality.png", report)
    page = root / "docs" / "samplers.md"
    text = page.read_text() if page.is_file() else f"# Samplers\n\n{BEGIN}\n{END}\n"
    write_atomically(page, replace_between_markers(text, tables(report)).encode())


def replace_between_markers(text: str, new: str, *, begin: str = BEGIN, end: str = END) -> str:
    """Put ``new`` between the two markers of a page.

    Raises:
        ValueError: If there are none.
    """
    page, found = re.subn(f"{begin}.*{end}", lambda _: f"{begin}\n{new.strip()}\n{end}", text, flags=re.DOTALL)
    if not found:
        raise ValueError(f"the page must have {begin} and {end}, in this order; put them there by hand")
    return page


def _by_label(report: dict[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for label in dict.fromkeys(point["label"] for point in report["points"]):
        yield label, [point for point in report["points"] if point["label"] == label]


def _cell(estimate: dict[str, float], floor: dict[str, float], scale: float) -> str:
    """Value ± s.e.; bold where it is within two standard errors of the floor."""
    text = f"{estimate['value'] * scale:.2f} ± {estimate['stderr'] * scale:.2f}"
    near = estimate["value"] - floor["value"] < 2 * math.hypot(estimate["stderr"], floor["stderr"])
    return f"**{text}**" if near else text


def tables(report: dict[str, Any]) -> str:
    """Both measures over budgets and samplers, and the samplers that choose their own steps, in Markdown."""
    budgets = sorted({point["budget"] for point in report["points"] if point["budget"]})
    clipped = "its predicted x0 clipped to the data's range" if report["clip_x0"] else "its predicted x0 not clipped"
    if report.get("threshold_x0"):
        clipped = f"its predicted x0 thresholded at its quantile {report['threshold_x0']:g}"
    about = (
        f"{report['num_samples']} samples a cell from the network of `{report['config']}` at step {report['step']}, "
        f"{clipped}, rounded to the data's grey levels. Both distances are squared, and between {report['group_size']} "
        f"samples and the {report['num_reference']:,} training images: their bias depends on the sample size, which is "
        f"the same in every cell and in the floor, the {report['group_size']} held-out images in place of samples. "
        "± is one standard error, by the jackknife over samples, the training images held fixed. Every sampler starts "
        "from the same x_T. The features are the last hidden layer of a classifier that names "
        f"{report['classifier_accuracy']:.1%} of the held-out images right. **Bold**: not to be told from the floor, "
        "within two standard errors of the difference."
    )
    lines = [
        *textwrap.wrap(about, 120, break_on_hyphens=False),
        "",
        "```sh",
        f"python -m benchmarks.quality --config {report['config']} --num-samples {report['num_samples']}",
        "```",
        "",
        "![Both distances over network calls](images/quality.png)",
    ]
    for key, title, scale in _MEASURES:
        floor = report["floor"][key]
        limit = f"{floor['value'] * scale:.2f} ± {floor['stderr'] * scale:.2f}"
        rows = []
        for label, points in _by_label(report):
            cells = {point["budget"]: _cell(point[key], floor, scale) for point in points if point["budget"]}
            if cells:
                row = {"sampler": label, "grid": points[0]["grid"]}
                rows.append(row | {str(budget): cells.get(budget, "") for budget in budgets})
        lines += ["", f"{title[0].upper()}{title[1:]}, over network calls. Floor: {limit}.", "", table(rows)]
    adaptive = [
        {"sampler": point["label"], "tolerance": point["setting"], "network calls": f"{point['nfe']:.0f}"}
        | {title: _cell(point[key], report["floor"][key], scale) for key, title, scale in _MEASURES}
        for point in report["points"]
        if not point["budget"]
    ]
    if adaptive:
        lines += ["", "Samplers that choose their own steps:", "", table(adaptive)]
    return "\n".join(lines)


def save_figure(path: Path, report: dict[str, Any]) -> None:
    """Both distances over network calls, logarithmic, with one standard error either side and the floor."""
    figure = Figure(figsize=(13, 5.6), layout="constrained")
    panels = figure.subplots(1, 2)
    markers = "osD^v<>Pph"
    for axes, (key, title, scale) in zip(panels, _MEASURES, strict=True):
        for index, (label, points) in enumerate(_by_label(report)):
            axes.errorbar(
                [point["nfe"] for point in points],
                [point[key]["value"] * scale for point in points],
                yerr=[point[key]["stderr"] * scale for point in points],
                label=label, color=f"C{index % 10}", linestyle=("-", "--", ":")[index // 10 % 3],
                marker=markers[(index + index // 10) % 10], markersize=5, linewidth=1.4, elinewidth=0.8, capsize=2,
            )  # fmt: skip
        value, error = (report["floor"][key][name] * scale for name in ("value", "stderr"))
        axes.axhspan(max(value - error, value / 10), value + error, color="0.8", zorder=0, lw=0)
        axes.axhline(value, color="0.35", lw=1, zorder=0, label=f"floor: {report['group_size']} held-out images")
        axes.set(xscale="log", yscale="log", xlabel="network calls (NFE)", ylabel=f"squared {title}")
        ticks = sorted({point["budget"] for point in report["points"] if point["budget"]})
        axes.set_xticks(ticks, [str(tick) for tick in ticks])
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(alpha=0.3, lw=0.5)
        axes.grid(alpha=0.3, lw=0.5, which="minor", axis="y")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", fontsize=9, frameon=False)
    figure.suptitle(
        f"{report['dataset']}: {report['num_samples']} samples in groups of {report['group_size']}, "
        f"against {report['num_reference']:,} training images; ± one standard error",
        fontsize=11,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_atomically(path, buffer.getvalue())
