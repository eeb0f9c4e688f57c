"""Classification by likelihood, and the worth of a label: from the nats of every class to what a report says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from likelihood import mean_and_stderr

from .table import plus_minus

_NUM_BINS = 15
_NUM_FOLDS = 10
_MOST_TEMPERATURE = 1e6


def class_log_probs(nats: Float[Tensor, "images classes"], temperature: float = 1.0) -> Float[Tensor, "images classes"]:
    """log p(c | x) = -N_c(x) / T - log sum_k exp(-N_k(x) / T), for classes that are equally likely.

    Args:
        nats: N_c(x) = -log p(x | c), or a bound above it, [N, C].
        temperature: T; 1 is Bayes' rule, more is less sure.

    Returns:
        float64 [N, C].
    """
    return (-nats.double() / temperature).log_softmax(1)


def fit_temperature(nats: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]) -> float:
    """The T of least mean -log p(label | x), convex in 1 / T, by bisection of its slope (Guo et al. 2017, Section 4.2).

    Args:
        nats: Of every class, [N, C].
        labels: The true classes, [N].

    Returns:
        T within [1, 1e6]: below 1 it would say without limit how sure one may be of images none of which is mistaken.
    """
    own = nats.gather(1, labels[:, None])
    low, high = 0.0, math.log(_MOST_TEMPERATURE)
    for _ in range(60):
        middle = 0.5 * (low + high)
        slope = ((class_log_probs(nats, math.exp(middle)).exp() * nats).sum(1, keepdim=True) - own).mean()
        # the slope of -log p in 1 / T is N_label - E[N]
        low, high = (low, middle) if float(slope) > 0 else (middle, high)
    return math.exp(0.5 * (low + high))


def calibration_error(log_probs: Float[Tensor, "images classes"], labels: Int64[Tensor, " images"]) -> float:
    """The mean of |accuracy - mean confidence| over 15 equal bins of confidence (Guo et al. 2017, Eq. 3).

    Args:
        log_probs: Of every class, [N, C]; the confidence is the greatest probability.
        labels: The true classes, [N].
    """
    confidence, chosen = log_probs.exp().max(1)
    surplus = (chosen == labels).double() - confidence
    which = (confidence * _NUM_BINS).long().clamp(max=_NUM_BINS - 1)
    return float(torch.zeros(_NUM_BINS, dtype=torch.float64).index_add(0, which, surplus).abs().sum()) / len(labels)


def _scores(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """Cross-entropy in bits, its standard error, and the calibration error."""
    mean, stderr = mean_and_stderr(-log_probs.gather(1, labels[:, None]) / math.log(2))
    return {
        "cross_entropy": mean,
        "cross_entropy_stderr": stderr,
        "calibration_error": calibration_error(log_probs, labels),
    }


def classification_report(nats: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy, cross-entropy, calibration and confusions of the classes that the nats choose.

    Bits that are wrong by a per cent are wrong by many nats an image, so that the probabilities are too sure of
    themselves: they are given once as they are, and once at a temperature. That of each tenth of the images, taken by
    turns, is fitted on the others.

    Args:
        nats: Of every class, [N, C].
        labels: The true classes, [N].

    Returns:
        The entries of the report; "confusion" counts images by true class, then by chosen one.
    """
    values, truth = torch.from_numpy(nats), torch.from_numpy(labels).long()
    log_probs = class_log_probs(values)
    chosen = log_probs.argmax(1)
    accuracy, stderr = mean_and_stderr((chosen == truth).double())
    num_classes = nats.shape[1]
    confusion = torch.bincount(truth * num_classes + chosen, minlength=num_classes**2).view(num_classes, num_classes)
    report: dict[str, Any] = {"accuracy": accuracy, "accuracy_stderr": stderr} | _scores(log_probs, truth)
    if len(truth) > 1:
        tempered = torch.empty_like(log_probs)
        folds = torch.arange(len(truth)) % min(_NUM_FOLDS, len(truth))
        for fold in folds.unique():
            mine = folds == fold
            tempered[mine] = class_log_probs(values[mine], fit_temperature(values[~mine], truth[~mine]))
        report["tempered"] = {"temperature": fit_temperature(values, truth)} | _scores(tempered, truth)
    return report | {"confusion": confusion.tolist()}


def label_worth(
    nats: np.ndarray, labels: np.ndarray, num_dims: int, null: np.ndarray | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Bits/dim of x given its label, of the mixture p(x) = sum_c p(x | c) / C, and of the model without a class.

    mixture - given_label = log2(C p(label | x)) / D, which is at most log2(C) / D for every image.

    Args:
        nats: Of every class, [N, C].
        labels: The true classes, [N].
        num_dims: D.
        null: Nats without a class, [N]; None of a model that is not trained so.

    Returns:
        The entries of the report, means and standard errors, those of differences paired; and the values of each image.
    """
    num_classes, bits = nats.shape[1], num_dims * math.log(2)
    own = nats[np.arange(len(labels)), labels] / bits
    mixture = (math.log(num_classes) - torch.from_numpy(-nats).logsumexp(1).numpy()) / bits
    values = {"given_label": own, "mixture": mixture, "label_worth": mixture - own}
    if null is not None:
        values |= {"without_label": null / bits, "without_label_less_mixture": null / bits - mixture}
    report: dict[str, Any] = {"label_worth_at_most": math.log2(num_classes) / num_dims}
    for name, each in values.items():
        report[name], report[f"{name}_stderr"] = mean_and_stderr(torch.from_numpy(each))
    return report, values


def classification_table(report: dict[str, Any], title: str) -> str:
    """The report in lines.

    Args:
        report: The entries of ``classification_report``, "bits_per_dim" of ``label_worth``, and "calls".
        title: What was classified.
    """
    worth, tempered, calls = report["bits_per_dim"], report.get("tempered", {}), report["calls"]

    def value(entry: dict[str, Any], name: str) -> str:
        return plus_minus(entry[name], entry[f"{name}_stderr"])

    rows = [
        ("accuracy", value(report, "accuracy")),
        ("cross-entropy, bits", value(report, "cross_entropy")),
        ("calibration error", f"{report['calibration_error']:.4f}"),
    ]
    if tempered:
        rows += [
            ("temperature that fits best", f"{tempered['temperature']:.3g}"),
            ("cross-entropy at it, bits", value(tempered, "cross_entropy")),
            ("calibration error at it", f"{tempered['calibration_error']:.4f}"),
        ]
    rows += [
        ("bits/dim given the label", value(worth, "given_label")),
        ("bits/dim of the mixture", value(worth, "mixture")),
        (f"a label is worth (<= {worth['label_worth_at_most']:.4f})", value(worth, "label_worth")),
    ]
    if "without_label" in worth:
        rows += [
            ("bits/dim without a label", value(worth, "without_label")),
            ("less that of the mixture", value(worth, "without_label_less_mixture")),
        ]
    saved = f", {calls['saved']:.0%} saved" if calls["saved"] else ""
    rows.append(("network calls an image", f"{calls['mean']:.0f}{saved}"))
    return "\n".join([title, *(f"{name:34} {text:>20}" for name, text in rows)])
