"""A model that keeps no activations for the backward pass, which computes them anew."""

from __future__ import annotations

from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ..condition import Cond
from ..prediction import Prediction
from ..score_model import ScoreModel


class RecomputedScoreModel(ScoreModel):
    """A model whose every call is computed a second time in the backward pass (Chen et al. 2016, arXiv:1604.06174).

    A sampler that gradients pass through then holds the activations of one call, not those of all its steps. Draws of
    the sampler are not repeated, since only the model is.

    Args:
        model: The model to wrap.
    """

    def __init__(self, model: ScoreModel) -> None:
        super().__init__(model.sde)
        self.model = model

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Ask the model."""
        return checkpoint(self.model, x_t, t, cond=cond, use_reentrant=False)
