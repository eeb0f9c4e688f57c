"""The numbers side by side, and what their difference says."""

from __future__ import annotations

import math
from typing import Any

import torch

from likelihood import mean_and_stderr

from .measurement import TERMS, Measurement

_TITLES = {
    "vlb": ("L_T", "sum of L_t", "L_0"),
    "vlb_continuous": ("L_T", "integral of L_t", "L_0"),
    "ode": ("prior", "volume", "dequantization"),
}
_WIDTH = 20


def table(measurements: dict[str, Measurement], title: str) -> str:
    """One column a likelihood; each column's terms add up to its total.

    Args:
        measurements: The likelihoods by name.
        title: What was measured.
    """
    titles = [_TITLES.get(name, TERMS) for name in measurements]
    rows = [" / ".join(dict.fromkeys(names)) for names in zip(*titles, strict=True)]
    label = max(len(row) for row in [*rows, "network calls"]) + 1
    lines = [title, " " * label + "".join(f"{name:>{_WIDTH}}" for name in measurements)]

    def line(row: str, cells: list[str]) -> None:
        lines.append(f"{row:{label}}" + "".join(f"{cell:>{_WIDTH}}" for cell in cells))

    for row, term in zip(rows, TERMS, strict=True):
        line(row, [_plus_minus(m.terms[term].mean, m.terms[term].stderr) for m in measurements.values()])
    line("total", [_plus_minus(m.total.mean, m.total.stderr) for m in measurements.values()])
    line("network calls", [str(m.nfe) for m in measurements.values()])
    return "\n".join(lines)


def _plus_minus(mean: float, stderr: float) -> str:
    return f"{mean:.4f}" + ("" if math.isnan(stderr) else f" ± {stderr:.4f}")


def gap(bound: Measurement, exact: Measurement) -> dict[str, float]:
    """Mean and standard error, over the images, of the bound less the exact likelihood, in bits/dim.

    Both are of the same images, whose own spread is in neither.
    """
    mean, stderr = mean_and_stderr(torch.from_numpy(bound.per_image - exact.per_image))
    return {"bits_per_dim": mean, "stderr": stderr}


def gap_sentence(gap: dict[str, float]) -> str:
    """What the difference of the two numbers says of the model.

    Args:
        gap: See ``gap``; a verdict needs two standard errors.
    """
    mean, stderr = gap["bits_per_dim"], gap["stderr"]
    value = f"gap {_plus_minus(mean, stderr)} bits/dim: "
    if math.isnan(stderr):
        return value + "a single image has no standard error, and so no verdict"
    if mean < -2 * stderr:
        return value + (
            "the reverse chain explains the data better than the same network's flow, which sums up its errors"
        )
    if mean > 2 * stderr:
        return value + (
            "the flow explains the data better than the reverse chain, which pays for its Gaussian steps and variance"
        )
    return value + "the reverse chain and the flow explain the data equally well, to within the error"


def without_nan(value: Any) -> Any:
    """JSON has no NaN: an unknown standard error is null."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and value != value else value
