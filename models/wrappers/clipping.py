"""Clip or threshold the predicted x0: wrappers of a score model, of which samplers know nothing."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import cast

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import expand_like

from ..condition import Cond
from ..prediction import Prediction
from ..score_model import ScoreModel
from .twist import Twist, TwistedModel


class _BoundedScoreModel(ScoreModel):
    """A model whose predicted x0 is brought into [low, high], and eps made to agree with it."""

    def __init__(self, model: ScoreModel, *, low: float = -1.0, high: float = 1.0) -> None:
        super().__init__(model.sde)
        if not low < high:
            raise ValueError(f"low must be below high, got {low} and {high}; swap them")
        self.model = model
        self.low, self.high = low, high

    @abstractmethod
    def bound(self, x0: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch *shape"]:
        """The x0 to use in place of the model's."""

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """Bound x0, recompute eps."""
        return self._bounded(self.model(x_t, t, cond=cond), x_t, t)

    @property
    def twist(self) -> Callable[..., Twist]:
        """The twist of the model inside, both answers bounded, and so particles of the bounded chain.

        Raises:
            AttributeError: Of a model without, so that this one has none either.
        """
        inner = cast(TwistedModel, self.model).twist

        def bounded(x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Twist:
            found = inner(x_t, t, cond=cond)
            prior, guided = (self._bounded(one, x_t, t) for one in (found.prior, found.guided))
            return Twist(prior, guided, found.log_likelihood)

        return bounded

    def log_likelihood_of_data(self, x0: Tensor, *, cond: Cond | None = None) -> Float[Tensor, " batch"]:
        """log p(y | x0) of the model inside; see ``TwistedModel``."""
        return cast(TwistedModel, self.model).log_likelihood_of_data(x0, cond=cond)

    def _bounded(self, raw: Prediction, x_t: Tensor, t: Tensor) -> Prediction:
        return Prediction.from_x0(
            x_t,
            self.bound(raw.x0),
            alpha=self.sde.alpha(t),
            sigma=raw.sigma,
            variance_fraction=raw.variance_fraction,
        )


class ClippedScoreModel(_BoundedScoreModel):
    """Clips the predicted x0 to the range of the data and makes eps agree with it (Ho et al. 2020, Section 3.2, code).

    Args:
        model: The model to wrap.
        low: Smallest data value.
        high: Largest data value.

    Raises:
        ValueError: If low is not below high.
    """

    def bound(self, x0: Tensor) -> Tensor:
        """x0 clipped to [low, high]."""
        return x0.clamp(self.low, self.high)


class ThresholdedScoreModel(_BoundedScoreModel):
    """Dynamic thresholding: shrinks the predicted x0 until all but its largest pixels lie in the range of the data.

    With c the centre of the range and r half its width, each sample's x0 becomes

        c + clip((x0 - c) / s, -r, r),   s = clip(quantile(|x0 - c|) / r, 1, max_scale)

    (Saharia et al. 2022, Section 2.3, where c = 0 and r = 1), and eps is made to agree with it. Where the quantile lies
    in the range, s is 1 and this is ``ClippedScoreModel``. Made for large guidance weights, under which clipping leaves
    many pixels at the ends of the range; so it wraps the guided model.

    Args:
        model: The model to wrap.
        quantile: Which quantile of a sample's absolute values, in (0, 1], linear between them; 1 is their maximum.
        low: Smallest data value.
        high: Largest data value.
        max_scale: Largest s, at least 1; 1 is ``ClippedScoreModel``.

    Raises:
        ValueError: If an option is out of range, or low and high are not finite.
    """

    def __init__(
        self,
        model: ScoreModel,
        *,
        quantile: float = 0.995,
        low: float = -1.0,
        high: float = 1.0,
        max_scale: float = math.inf,
    ) -> None:
        super().__init__(model, low=low, high=high)
        if not (math.isfinite(low) and math.isfinite(high)):
            raise ValueError(f"low and high must be finite, got {low} and {high}; pass the data's range")
        if not 0 < quantile <= 1:
            raise ValueError(f"quantile must lie in (0, 1], got {quantile}; 0.995 is usual")
        if not max_scale >= 1:
            raise ValueError(f"max_scale must be at least 1, got {max_scale}; leave it out for no limit")
        self.quantile = quantile
        self.max_scale = max_scale

    def bound(self, x0: Tensor) -> Tensor:
        """x0 scaled and clipped, each sample by its own s."""
        centre, half_width = 0.5 * (self.low + self.high), 0.5 * (self.high - self.low)
        distances = (x0 - centre).abs_().unsqueeze(1).flatten(1)
        scale = (quantile_per_sample(distances, self.quantile) / half_width).clamp(1.0, self.max_scale)
        # from the centre, which leaves x0 as it is to the bit where s is 1
        return torch.lerp(x0.new_full((), centre), x0, expand_like(1 / scale, x0)).clamp_(self.low, self.high)


def quantile_per_sample(values: Float[Tensor, "batch dims"], quantile: float) -> Float[Tensor, " batch"]:
    """The quantile of each sample, linear between the two nearest values.

    That of ``torch.quantile``, which refuses more than 2^24 values in all, two images of 1024x1024x3 among them, and
    sorts where only the values above the quantile need to be found.

    Args:
        values: At least one value a sample, [B, D].
        quantile: In [0, 1].

    Returns:
        float64 [B].
    """
    rank = quantile * (values.shape[1] - 1)
    below = math.floor(rank)
    above = values.topk(values.shape[1] - below, dim=1, sorted=False).values
    nearest = above.topk(min(2, above.shape[1]), dim=1, largest=False).values.double()
    return nearest[:, 0].lerp(nearest[:, -1], rank - below)
