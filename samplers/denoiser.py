"""A model with its condition, as steps call it."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from models import Cond, Prediction, ScoreModel
from sde_lib import SDE, Point


@dataclass(frozen=True)
class Denoiser:
    """A model with its condition: ``denoise(x, t)`` is its prediction at a point t.

    Attributes:
        model: Any ScoreModel.
        cond: Its condition, or None.
    """

    model: ScoreModel
    cond: Cond | None = None

    @property
    def sde(self) -> SDE:
        """The model's SDE."""
        return self.model.sde

    def __call__(self, x: Float[Tensor, "batch *shape"], t: Point) -> Prediction:
        """Call the model.

        Args:
            x: State at t, [B, ...].
            t: The point.

        Returns:
            x0, eps and score, as the model predicts them.
        """
        return self.model(x, t.times_for(x), cond=self.cond)
