"""A model that is told its condition at high noise levels only."""

from __future__ import annotations

from torch import Tensor

from ..condition import Cond, null_of
from ..prediction import Prediction
from ..score_model import ScoreModel
from .guidance import lacks_null_condition


class ToldAboveScoreModel(ScoreModel):
    """A model that is told its condition at t > ``t_min``, and its null condition nearer to the data.

    Near the data x_t shows its class, so that p(x0 | x_t, c) hardly depends on c. Where a network's answers still do,
    that is an error of the network; a chain whose last steps are not told c is free of it. It has a likelihood and
    samples like any other.

    Args:
        model: The model to wrap, trained without its condition now and then.
        t_min: Where the condition begins to be told, in [0, 1).

    Raises:
        ValueError: If ``t_min`` is out of range, or a network inside has no null condition.
    """

    def __init__(self, model: ScoreModel, *, t_min: float) -> None:
        super().__init__(model.sde)
        if not 0 <= t_min < 1:
            raise ValueError(f"t_min must be within [0, 1), got {t_min}; 0.05 is usual")
        if lacks_null_condition(model):
            raise ValueError(
                f"t_min={t_min:g} needs a network that is trained without its condition too, got one without dropout; "
                "train one with model.condition_dropout=0.1"
            )
        self.model, self.t_min = model, t_min

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Ask the model, under the null condition where t <= t_min."""
        return self.model(x_t, t, cond=None if cond is None else null_of(cond, t <= self.t_min))
