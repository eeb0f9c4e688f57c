"""Distortion, rate and reconstruction error of an autoencoder over a split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from likelihood import mean_and_stderr, nats_to_bits_per_dim

from .measurement import Values
from .table import plus_minus

_TERMS = ("distortion", "rate")
_ROWS = ("distortion", "rate", "bits_per_dim", "psnr", "rmse")


def bound_of(values: Values) -> np.ndarray:
    """distortion + rate of each image of a batch, in bits/dim, float64 [B]."""
    nats = torch.from_numpy(values["distortion"] + values["rate"])
    return nats_to_bits_per_dim(nats, int(values["num_dims"])).numpy()


class FirstStageMeasurement:
    """The terms over a split, as means with standard errors.

    Args:
        batches: ``FirstStageTerms`` of all batches, in order, as arrays.

    Attributes:
        distortion: In bits/dim, float64 [N].
        rate: The same.
        squared_error: Mean square of x - E[x | z] of each image, in units of x0, float64 [N].
        code_counts: How often each code was chosen, without those that never were; None without a codebook.
    """

    def __init__(self, batches: Sequence[Values]) -> None:
        num_dims = int(batches[0]["num_dims"])
        nats = {name: np.concatenate([values[name] for values in batches]) for name in _TERMS}
        bits = {name: nats_to_bits_per_dim(torch.from_numpy(one), num_dims).numpy() for name, one in nats.items()}
        self.distortion, self.rate = bits["distortion"], bits["rate"]
        self.squared_error = np.concatenate([values["squared_error"] for values in batches])
        self.code_counts: np.ndarray | None = None
        if "codes" in batches[0]:
            codes = np.concatenate([values["codes"].ravel() for values in batches])
            self.code_counts = np.unique(codes, return_counts=True)[1]

    def report(self) -> dict[str, float]:
        """Means and standard errors, as ``eval/report.json`` has them.

        "psnr" is 10 log10(4 / mean square) in dB, of the mean square over all images, whose range is 2; its standard
        error, as that of "rmse", is to first order in that of the mean square. With a codebook, "codes_used" is the
        number of codes that were chosen for any image, and "code_perplexity" the exp of the entropy of their shares.
        """
        report: dict[str, float] = {}
        each = {"distortion": self.distortion, "rate": self.rate, "bits_per_dim": self.distortion + self.rate}
        for name, values in each.items():
            report[name], report[f"{name}_stderr"] = mean_and_stderr(torch.from_numpy(values))
        mean, stderr = mean_and_stderr(torch.from_numpy(self.squared_error))
        report |= {"rmse": math.sqrt(mean), "rmse_stderr": 0.5 * stderr / math.sqrt(mean) if mean else 0.0}
        report["psnr"] = 10 * math.log10(4 / mean) if mean else math.inf
        report["psnr_stderr"] = 10 / math.log(10) * stderr / mean if mean else 0.0
        if self.code_counts is not None:
            shares = self.code_counts / self.code_counts.sum()
            report["codes_used"] = len(shares)
            report["code_perplexity"] = float(np.exp(-(shares * np.log(shares)).sum()))
        return report


def first_stage_table(report: dict[str, Any], title: str) -> str:
    """A line a figure.

    Args:
        report: ``FirstStageMeasurement.report``.
        title: What was measured.
    """
    units = {"psnr": "dB", "rmse": "in units of x0"}
    rows = [
        f"{name:>14} {plus_minus(report[name], report[f'{name}_stderr']):>20} {units.get(name, 'bits/dim')}"
        for name in _ROWS
    ]
    if "codes_used" in report:
        rows.append(
            f"{'codes used':>14} {report['codes_used']:>20} with a perplexity of {report['code_perplexity']:.1f}"
        )
    return "\n".join([title, *rows])
