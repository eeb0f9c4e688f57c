"""Twists: answers of a model together with the likelihood that guides them, for particles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Float
from torch import Tensor

from sde_lib import SDE

from ..condition import Cond
from ..prediction import Prediction


@dataclass(frozen=True)
class Twist:
    """An answer of a model of p(x0), and how likely what is known of x0 is, as far as x_t tells.

    Attributes:
        prior: The model's answer.
        guided: Its answer, changed by the gradient of ``log_likelihood``.
        log_likelihood: An approximation of log p(y | x_t), float64 [B].
    """

    prior: Prediction
    guided: Prediction
    log_likelihood: Float[Tensor, " batch"]


class TwistedModel(Protocol):
    """A model that twisted particles can be drawn by: ``PiGDMScoreModel``, ``ClassifierGuidedScoreModel``."""

    sde: SDE

    def twist(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Twist:
        """Its answers at x_t, [B, ...]."""
        ...

    def log_likelihood_of_data(self, x0: Tensor, *, cond: Cond | None = None) -> Float[Tensor, " batch"]:
        """log p(y | x0), float64 [B]."""
        ...
