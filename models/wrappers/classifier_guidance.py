"""Guidance by the gradient of a classifier of noisy data."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import SDE, check_per_sample, expand_like

from ..condition import Cond, Condition
from ..prediction import Prediction
from ..score_model import ScoreModel
from .guidance import EVERYWHERE, Interval, check_interval, check_same_sde, is_inside, takes_labels, without_label
from .twist import Twist


class GradientOfClass(Protocol):
    """Whatever knows the gradient of log p(class | x_t): ``NoisyClassifier``, ``LabelledMixtureScoreModel``."""

    sde: SDE

    def grad_log_prob(self, x_t: Tensor, t: Tensor, label: Tensor, /) -> Tensor:
        """The gradient of log p(label | x_t) with respect to x_t, [B, ...]."""
        ...

    def class_log_prob(self, x_t: Tensor, t: Tensor, /) -> Tensor:
        """log p(class | x_t) of every class, [B, K]."""
        ...


class ClassifierGuidedScoreModel(ScoreModel):
    """Classifier guidance: a model's score, plus s times the gradient of a classifier of noisy data,

        x0' = x0 + s (sigma^2 / alpha) grad log p(c | x_t),   eps' = eps - s sigma grad log p(c | x_t)

    (Dhariwal & Nichol 2021, Algorithm 2, for any sampler). Their Algorithm 1 shifts the mean of an ancestral step
    instead, by its variance times the gradient; the two agree to first order in the step. With s = 1 and exact answers
    this is the score of p(x | c); with another s, what is sampled is not the law whose density is p(x) p(c | x)^s.

    A network is told the label too if it has classes. A sample of the label -1 is not guided; neither is one where
    alpha is 0, and x_t says nothing of the class. Calls of the classifier are not counted as NFE.

    Args:
        model: The model.
        classifier: Gives ``grad_log_prob(x_t, t, label)``; of the same SDE.
        scale: s.
        interval: (lo, hi): guided where lo < sigma / alpha <= hi.

    Raises:
        ValueError: If an option is out of range, or the classifier is of another SDE.
    """

    def __init__(
        self,
        model: ScoreModel,
        classifier: GradientOfClass,
        *,
        scale: float = 1.0,
        interval: Interval = EVERYWHERE,
    ) -> None:
        super().__init__(model.sde)
        if not math.isfinite(scale):
            raise ValueError(f"scale must be finite, got {scale}; 1 is that of Bayes' rule, 0 is no guidance")
        check_interval(interval)
        check_same_sde("classifier", classifier.sde, model.sde)
        self.model, self.classifier = model, classifier
        self.scale, self.interval = scale, interval

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Ask the model, and the classifier where some sample is guided.

        Raises:
            ValueError: If the condition has no label.
        """
        check_per_sample("t", t, x_t.shape[0])
        label = _label(cond)
        answer = self.model(x_t, t, cond=cond if takes_labels(self.model) else without_label(cond))
        return self._guided(answer, x_t, t, label)

    def twist(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Twist:
        """The model's answer, the guided one and log p(c | x_t): class guidance without bias, by ``TwistedSampler``.

        The model is not told the class: its law is p(x), of which particles with weights make p(x | c).

        Raises:
            ValueError: If the condition has no label.
        """
        answer, label = self.model(x_t, t, cond=without_label(cond)), _label(cond)
        return Twist(answer, self._guided(answer, x_t, t, label), self._log_prob(x_t, t, label))

    def log_likelihood_of_data(self, x0: Tensor, *, cond: Cond | None = None) -> Float[Tensor, " batch"]:
        """log p(c | x0) by the classifier at t = 0, float64 [B]."""
        return self._log_prob(x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device), _label(cond))

    def _log_prob(self, x_t: Tensor, t: Tensor, label: Tensor) -> Tensor:
        """log p(c | x_t), 0 where there is no class."""
        found = self.classifier.class_log_prob(x_t, t).double().gather(1, label.clamp(min=0)[:, None]).squeeze(1)
        return torch.where(label >= 0, found, 0.0)

    def _guided(self, answer: Prediction, x_t: Tensor, t: Tensor, label: Tensor) -> Prediction:
        alpha, sigma = self.sde.alpha(t), answer.sigma
        guided = is_inside(self.interval, self.sde, t) & (label >= 0) & (alpha > 0)
        if self.scale == 0 or not bool(guided.any()):
            return answer
        gradient = self.classifier.grad_log_prob(x_t, t, label.clamp(min=0)).to(x_t.dtype)
        on_x0, on_eps = (torch.where(guided, of, 0.0) for of in (self.scale * sigma**2 / alpha, -self.scale * sigma))
        return replace(
            answer,
            x0=torch.addcmul(answer.x0, expand_like(on_x0, x_t), gradient),
            eps=torch.addcmul(answer.eps, expand_like(on_eps, x_t), gradient),
        )


def _label(cond: Cond | None) -> Tensor:
    label = cond.label if isinstance(cond, Condition) else cond
    if label is None:
        raise ValueError("classifier guidance needs labels, got none; pass cond=labels, -1 for no guidance")
    return label
