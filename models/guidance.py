"""ScoreModel to ScoreModel wrappers: what they change, samplers never know."""

from __future__ import annotations

from torch import Tensor

from .score_model import Prediction, ScoreModel


class ClippedScoreModel(ScoreModel):
    """Clips the predicted x0 to the range of the data and makes eps agree with it (Ho et al. 2020, Section 3.2, code).

    Args:
        model: The model to wrap.
        low: Smallest data value.
        high: Largest data value.

    Raises:
        ValueError: If low is not below high.
    """

    def __init__(self, model: ScoreModel, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(model.sde)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}; swap them")
        self.model = model
        self.low, self.high = low, high

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Tensor | None = None) -> Prediction:
        """Clip x0, recompute eps."""
        raw = self.model(x_t, t, cond=cond)
        return Prediction.from_x0(
            x_t,
            raw.x0.clamp(self.low, self.high),
            alpha=self.sde.alpha(t),
            sigma=raw.sigma,
            variance_fraction=raw.variance_fraction,
        )
