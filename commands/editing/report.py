"""Arrays, picture and report of ``--mode edit``."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import ImageKind
from evaluation.table import without_nan
from experiment.pictures import as_array, save_png
from experiment.workdir import save_npz, write_json
from likelihood import mean_and_stderr
from tasks.editing import (
    ClassScore,
    Edited,
    EditMethod,
    blur_residual,
    change_map,
    localization_figures,
    localization_table,
    mean_square_change,
    recognized,
    smoothed_map,
)
from tasks.restoration import restoration_picture
from tasks.restoration.metrics import root_of_mean

from ..sample import SampledRun
from .subjects import Subjects, Told

_MOST_ROWS = 16  # in the picture


def write_edited(
    run: SampledRun,
    method: EditMethod,
    subjects: Subjects,
    told: Told,
    edited: Edited,
    t: float,
    score: ClassScore | None,
    folder: Path,
) -> dict[str, Any]:
    """Write arrays, picture and, last, the report; print its figures."""
    settings, x0 = run.config.edit, subjects.x0
    alpha, sigma = (float(one) for one in run.model.sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    report: dict[str, Any] = {"method": settings.method, "method_options": vars(method)} | subjects.origin
    report |= {"num_images": len(x0), "units": run.units, "t": t}
    report |= {"noise_ratio": sigma / alpha if alpha else None, "nfe": edited.nfe}
    maps = _maps(method, x0, edited)
    figures = _figures(run, subjects, edited, score)
    located: dict[str, dict[str, dict[str, float]]] = {}
    if subjects.masks is not None and maps:
        report["lesion_share"] = float(subjects.masks.double().mean())
        if 0 < report["lesion_share"] < 1:
            located = {name: localization_figures(one, subjects.masks) for name, one in maps.items()}
    for name, one in figures.items():
        report |= {name: one["value"], f"{name}_stderr": one["stderr"]}
    report |= {"localization": located} if located else {}
    report |= run.about(None if told.target is None else told.target.tolist())
    report["source_classes"] = None if told.source is None else told.source.tolist()
    # a report is of the files beside it: it goes first, and comes last
    (folder / "report.json").unlink(missing_ok=True)
    save_npz(folder / "edited.npz", _arrays(run, subjects, edited, maps))
    if isinstance(run.kind, ImageKind):
        save_png(folder / "grid.png", _picture(run, settings.method, subjects, edited, maps))
    write_json(folder / "report.json", without_nan(report))
    of = subjects.origin.get("input") or f"{run.config.data.dataset} {settings.split}"
    ratio = f", sigma / alpha = {sigma / alpha:.4g}" if alpha else ""
    print(f"{of}, {len(x0)} images edited by step {run.step}, {method}")
    print(f"t = {t:.4g}{ratio}, {edited.nfe} network calls each; errors in units of {run.units}")
    for name, one in figures.items():
        stderr = "" if math.isnan(one["stderr"]) else f" ± {one['stderr']:.4f}"
        print(f"{name.replace('_', ' '):28} {one['value']:.4f}{stderr}")
    if located:
        print("\n".join(localization_table(located)))
    sys.stdout.flush()
    print(f"wrote {folder / 'report.json'}", file=sys.stderr)
    return report


def _figures(
    run: SampledRun, subjects: Subjects, edited: Edited, score: ClassScore | None
) -> dict[str, dict[str, float]]:
    """Figures of the images, each with its standard error over images."""
    x0, others = subjects.x0, edited.others
    figures = {"rmse": root_of_mean(mean_square_change(x0, edited.x0))}
    for name, other in others.items():
        figures[f"{name}_rmse"] = root_of_mean(mean_square_change(x0, other))
    if subjects.masks is not None and "reconstruction" in others:
        healthy = ~subjects.masks.flatten(1).any(1)
        for name, one in {"healthy": edited.x0, "reconstructed_healthy": others["reconstruction"]}.items():
            if bool(healthy.any()):
                figures[f"{name}_rmse"] = root_of_mean(mean_square_change(x0[healthy], one[healthy]))
    if score is not None:
        found = recognized(score, [one.to(run.device) for one in (x0, others["before"], edited.x0)])
        for name, one in zip(("originals", "before", "edited"), found, strict=True):
            share, stderr = mean_and_stderr(one.double().cpu())
            figures[f"recognized_{name}"] = {"value": share, "stderr": stderr}
    return figures


def _maps(method: EditMethod, x0: Tensor, edited: Edited) -> dict[str, Tensor]:
    """The maps of a method that has them, and those of the baselines; none of vectors."""
    if not method.maps or x0.ndim != 4:
        return {}
    change, side = change_map(x0, edited.x0), min(x0.shape[2:])
    return {
        "change": change,
        "smoothed": smoothed_map(change, std=side / 16),
        "reconstruction": change_map(x0, edited.others["reconstruction"]),
        "blur": blur_residual(x0, std=side / 8),
    }


def _arrays(run: SampledRun, subjects: Subjects, edited: Edited, maps: dict[str, Tensor]) -> dict[str, np.ndarray]:
    """The images before and after, and what lies between, for the file."""
    arrays = {"samples": as_array(edited.x0, run.kind), "originals": as_array(subjects.x0, run.kind)}
    arrays |= {"x0": edited.x0.numpy(), "x_t": edited.x_t.numpy()}
    arrays |= {name: other.numpy() for name, other in edited.others.items()}
    if maps:
        arrays["maps"] = maps["change"].numpy()
    if subjects.masks is not None:
        arrays["masks"] = subjects.masks.numpy()
    if subjects.labels is not None:
        arrays["labels"] = subjects.labels.numpy()
    return arrays


def _picture(run: SampledRun, name: str, subjects: Subjects, edited: Edited, maps: dict[str, Tensor]) -> np.ndarray:
    """The first images as they were, as they are edited, and what tells of the change."""
    assert isinstance(run.kind, ImageKind)
    space = run.kind.picture_space
    columns = {"image": subjects.x0}
    if name == "sdedit":
        columns["noised"] = edited.x_t
    if "before" in edited.others:
        columns["before"] = edited.others["before"]
    columns["edited"] = edited.x0
    if "round_trip" in edited.others and not maps:
        columns["round trip"] = edited.others["round_trip"]
    if maps:
        # white is the largest change of all
        change = maps["change"].unsqueeze(1)
        columns["map"] = 2 * change / change.max().clamp(min=1e-12) - 1
        if subjects.masks is not None:
            columns["truth"] = 2 * subjects.masks.unsqueeze(1).float() - 1
    return restoration_picture({title: space.pixels(one[:_MOST_ROWS]) for title, one in columns.items()})
