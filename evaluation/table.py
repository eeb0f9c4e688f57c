"""The numbers side by side, and what their difference says."""

from __future__ import annotations

import math
from typing import Any

import torch

from likelihood import mean_and_stderr

from .measurement import TERMS, Measurement

# what a term of the report is of each likelihood
_TITLES = {
    "vlb": ("L_T", "sum of L_t", "L_0"),
    "vlb_continuous": ("L_T", "integral of L_t", "L_0"),
    "ode": ("prior", "volume", "dequantization"),
}
# what the probability-flow ODE is compared with, and what that pays for
_CHAINS = {
    "vlb": ("the reverse chain", "which pays for its Gaussian steps and variance"),
    "vlb_continuous": ("the reverse SDE", "whose bound is not tight"),
}
_WIDTH = 20
_TOTAL, _CALLS = "bits_per_dim (total)", "nfe (network calls)"


def table(measurements: dict[str, Measurement], title: str) -> str:
    """One column a likelihood; each column's terms add up to its total. Rows have the names of ``eval/report.json``.

    Args:
        measurements: The likelihoods by name.
        title: What was measured.
    """
    titles = [_TITLES[name] for name in measurements if name in _TITLES]
    rows = []
    for term, *names in zip(TERMS, *titles, strict=True):
        means = " / ".join(name for name in dict.fromkeys(names) if name != term)
        rows.append(f"{term} ({means})" if means else term)
    label = max(len(row) for row in [*rows, _CALLS]) + 1
    lines = [title, " " * label + "".join(f"{name:>{_WIDTH}}" for name in measurements)]

    def line(row: str, cells: list[str]) -> None:
        lines.append(f"{row:{label}}" + "".join(f" {cell:>{_WIDTH - 1}}" for cell in cells))

    for row, term in zip(rows, TERMS, strict=True):
        line(row, [plus_minus(m.terms[term].mean, m.terms[term].stderr) for m in measurements.values()])
    line(_TOTAL, [plus_minus(m.total.mean, m.total.stderr) for m in measurements.values()])
    line(_CALLS, [str(m.nfe) for m in measurements.values()])
    return "\n".join(lines)


def plus_minus(mean: float, stderr: float) -> str:
    """Mean and standard error to four digits; a single image has none."""
    return f"{mean:.4f}" + ("" if math.isnan(stderr) else f" ± {stderr:.4f}")


def gap_of(measurements: dict[str, Measurement]) -> dict[str, Any] | None:
    """The bound less the exact likelihood, in bits/dim: the chain's, or else its limit's.

    The mean and its standard error are over the images' own differences, so that what makes one image harder than
    another is not in them.

    Args:
        measurements: The likelihoods by name.

    Returns:
        "of", the two names, "bits_per_dim" and "stderr"; None if there are not both.
    """
    bound = next((name for name in _CHAINS if name in measurements), None)
    if bound is None or "ode" not in measurements:
        return None
    difference = measurements[bound].per_image - measurements["ode"].per_image
    mean, stderr = mean_and_stderr(torch.from_numpy(difference))
    return {"of": [bound, "ode"], "bits_per_dim": mean, "stderr": stderr}


def gap_sentence(gap: dict[str, Any]) -> str:
    """A sentence on the difference of the two numbers.

    Args:
        gap: See ``gap_of``; a verdict needs two standard errors.
    """
    mean, stderr = gap["bits_per_dim"], gap["stderr"]
    chain, price = _CHAINS[gap["of"][0]]
    value = f"gap {plus_minus(mean, stderr)} bits/dim: "
    if math.isnan(stderr):
        return value + "a single image has no standard error, and so no verdict"
    if mean < -2 * stderr:
        return value + f"{chain} explains the data better than the same network's ODE, which sums up its errors"
    if mean > 2 * stderr:
        return value + f"the ODE explains the data better than {chain}, {price}"
    return value + f"{chain} and the ODE explain the data equally well, to within the error"


def without_nan(value: Any) -> Any:
    """Make a value fit for JSON, which has no NaN (an unknown standard error is null) and no infinity (a word)."""
    if isinstance(value, dict):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_nan(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
