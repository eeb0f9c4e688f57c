"""Cross-entropy and accuracy of a classifier of noisy data, over t."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from likelihood import mean_and_stderr
from models import Cond
from models.condition import label_of
from sde_lib import SDE, NoiseStreams

from .measurement import Values
from .table import plus_minus

# dense where little noise is, where a classifier is sure and its gradient steep
_FRACTIONS = (0.0, 0.02, 0.05, *(k / 10 for k in range(1, 11)))


@dataclass(frozen=True)
class ClassifierTerms:
    """A classifier's answers to a batch at T times.

    Attributes:
        nats: -log p(class | x_t), float64 [B, T].
        correct: Whether the class has the largest probability, [B, T].
    """

    nats: Float[Tensor, "batch times"]
    correct: Bool[Tensor, "batch times"]


class ClassifierCurve:
    """The answers of a classifier at times from t_min to t_max, with one draw of noise a sample for all of them.

    Args:
        sde: The SDE.

    Attributes:
        times: The times, float64 [T].
        num_times: T.
    """

    num_times = len(_FRACTIONS)

    def __init__(self, sde: SDE) -> None:
        self._sde = sde
        self.times = sde.t_min + torch.tensor(_FRACTIONS, dtype=torch.float64) * (sde.t_max - sde.t_min)

    @torch.no_grad()
    def __call__(
        self, classifier: Callable[[Tensor, Tensor], Tensor], x0: Tensor, *, cond: Cond, noise: NoiseStreams
    ) -> ClassifierTerms:
        """Classify x_t = alpha x0 + sigma eps.

        Args:
            classifier: Logits, or log-probabilities, [B, K], of (x_t, t).
            x0: Data, [B, ...].
            cond: Classes, int64 [B].
            noise: One stream a sample.
        """
        label, eps = label_of(cond), noise.normal_like(x0)
        assert label is not None  # a split has labels
        nats, correct = [], []
        for time in self.times.tolist():
            t = torch.full((len(x0),), time, dtype=torch.float64, device=x0.device)
            log_prob = classifier(self._sde.perturb(x0, t, eps), t).double().log_softmax(1)
            nats.append(-log_prob.gather(1, label[:, None]).squeeze(1))
            correct.append(log_prob.argmax(1) == label)
        return ClassifierTerms(torch.stack(nats, 1), torch.stack(correct, 1))


def mean_nats(values: Values) -> np.ndarray:
    """Each sample's cross-entropy, the mean over the times, float64 [B]."""
    return values["nats"].mean(1)


class ClassifierMeasurement:
    """Answers over a split, as means with standard errors.

    Args:
        batches: ``ClassifierTerms`` of all batches, in order, as arrays.

    Attributes:
        nats: -log p(class | x_t), float64 [N, T].
        correct: [N, T].
    """

    def __init__(self, batches: Sequence[Values]) -> None:
        self.nats = np.concatenate([values["nats"] for values in batches])
        self.correct = np.concatenate([values["correct"] for values in batches])

    def report(self, times: Tensor, labels: Tensor) -> dict[str, Any]:
        """The curves, as ``eval/report.json`` has them.

        Args:
            times: [T].
            labels: Classes of the split, int64 [N].
        """
        nats, nats_stderr = _means(self.nats)
        accuracy, accuracy_stderr = _means(self.correct)
        return {
            "class_entropy": class_entropy(labels),
            "t": times.tolist(),
            "cross_entropy": nats,
            "cross_entropy_stderr": nats_stderr,
            "cross_entropy_bits": [value / math.log(2) for value in nats],
            "cross_entropy_bits_stderr": [value / math.log(2) for value in nats_stderr],
            "accuracy": accuracy,
            "accuracy_stderr": accuracy_stderr,
        }


def _means(values: np.ndarray) -> tuple[list[float], list[float]]:
    """Means and standard errors over samples, of values [N, T]."""
    pairs = [mean_and_stderr(column) for column in torch.from_numpy(values).double().unbind(1)]
    return [mean for mean, _ in pairs], [stderr for _, stderr in pairs]


def class_entropy(labels: Tensor) -> float:
    """The entropy of the classes, in nats, from labels: with p the shares of the K classes that are there,

        H(c) = -sum p log p + (K - 1) / 2 N,

    where the last term makes up for shares that are those of these N labels, not of what they are drawn from (Miller
    1955, to first order in 1 / N): no classifier knows them.

    Args:
        labels: int64 [N].
    """
    counts = labels.unique(return_counts=True)[1].double()
    shares = counts / len(labels)
    return float(-(shares * shares.log()).sum()) + (len(counts) - 1) / (2 * len(labels))


def classifier_table(report: dict[str, Any], title: str) -> str:
    """A line a time, and the entropy of the classes, to which the cross-entropy tends where x_t is noise.

    Args:
        report: ``ClassifierMeasurement.report``.
        title: What was measured.
    """
    lines = [title, f"{'t':>8} {'cross_entropy, nats':>22} {'bits':>20} {'accuracy':>20}"]
    columns = ("cross_entropy", "cross_entropy_bits", "accuracy")
    for k, t in enumerate(report["t"]):
        nats, bits, accuracy = (plus_minus(report[name][k], report[f"{name}_stderr"][k]) for name in columns)
        lines.append(f"{t:8.4f} {nats:>22} {bits:>20} {accuracy:>20}")
    entropy = report["class_entropy"]
    lines.append(f"{'H(c)':>8} {entropy:22.4f} {entropy / math.log(2):20.4f}")
    return "\n".join(lines)
