"""Bits/dim of a cascade: P(x) = P(y) P(x | y), since the small image y is a function of the large one x."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluation.quote import quote_cascade
from evaluation.table import without_nan
from likelihood import mean_and_stderr
from runtime.files import parse_json, read_regular

# what the stages' measurements must agree on, for images to be the same ones
_SAME = ("dataset", "split", "num_images", "split_size", "weights")


@dataclass(frozen=True)
class MeasuredStage:
    """The measurement of a stage.

    Attributes:
        report: ``eval/report.json``.
        per_image: ``eval/per_image.npz``: bits/dim of each image by likelihood.
    """

    report: dict[str, Any]
    per_image: dict[str, np.ndarray]

    @property
    def num_dims(self) -> int:
        """Dimensions of an image."""
        return int(np.prod(self.report["image_shape"]))


def read_stage(workdir: Path) -> MeasuredStage:
    """Read the measurement of a stage's work directory."""
    with np.load(workdir / "eval" / "per_image.npz") as arrays:
        return MeasuredStage(parse_json(read_regular(workdir / "eval" / "report.json")), dict(arrays))


def cascade_report(stages: Mapping[str, MeasuredStage]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Add up the bits of each image over the stages, in units of the last one's dimensions.

    Args:
        stages: The measured stages by name, from the smallest images on.

    Returns:
        The report, and bits/dim of each image by likelihood, float64 [N], for those that all stages measured.

    Raises:
        ValueError: If the stages were measured on different images, or by different likelihoods.
    """
    first, *_, last = stages.values()
    for key in _SAME:
        found = {name: stage.report[key] for name, stage in stages.items()}
        if len(set(found.values())) > 1:
            raise ValueError(f"the stages were measured with different {key}, {found}; set it alike for all of them")
    names = [name for name in last.per_image if all(name in stage.report for stage in stages.values())]
    names = [name for name in names if isinstance(last.report.get(name), dict)]
    if not names:
        raise ValueError("the stages share no likelihood; set --config.eval.likelihoods for all of them")
    report = {key: last.report[key] for key in (*_SAME, "image_shape", "num_levels", "units", "versions")}
    report["steps"] = {name: stage.report["step"] for name, stage in stages.items()}
    # the images that later stages are told are those of the stages before
    report["condition"] = first.report.get("condition", [])
    report["class_conditional"] = any(stage.report["class_conditional"] for stage in stages.values())
    per_image: dict[str, np.ndarray] = {}
    for name in names:
        shares = {
            stage: measured.per_image[name] * (measured.num_dims / last.num_dims) for stage, measured in stages.items()
        }
        per_image[name] = np.sum(list(shares.values()), axis=0)
        mean, stderr = mean_and_stderr(torch.from_numpy(per_image[name]))
        kinds = {measured.report[name]["kind"] for measured in stages.values()}
        report[name] = {
            "kind": "bound" if "bound" in kinds else "exact",
            "bits_per_dim": mean,
            "stderr": stderr,
            "of_stages": {stage: float(values.mean()) for stage, values in shares.items()},
        }
        report[name]["quote"] = quote_cascade(report, name)
    return without_nan(report), per_image
