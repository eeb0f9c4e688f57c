"""Ancestral sampling: DDPM's reverse chain, for any SDE and any grid (Ho et al. 2020, Algorithm 2)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from models import ReverseVariance, ScoreModel, check_variance, reverse_log_var
from sde_lib import NoiseStreams

from .base import StepSampler
from .registry import register_sampler


@register_sampler("ancestral")
class AncestralSampler(StepSampler):
    """x_s = mean of q(x_s | x_t, x0 = prediction) + sqrt(var) z.

    The step that ends without noise (sigma_s = 0) adds none. NFE is num_steps, plus one with a final denoising.

    Args:
        variance: "small": that of q(x_s | x_t, x0); "large": that of q(x_t | x_s) (Ho et al. 2020, Section 3.2); or
            "learned": between the two as the model says (Nichol & Dhariwal 2021, Eq. 15).
        **kwargs: See ``StepSampler``.

    Raises:
        ValueError: If the variance is unknown, or "learned" of a model that does not learn it.
    """

    def __init__(self, *, variance: ReverseVariance = "small", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.variance: ReverseVariance = check_variance(variance)

    def step(
        self, model: ScoreModel, x_t: Tensor, t: Tensor, s: Tensor, *, cond: Tensor | None, noise: NoiseStreams
    ) -> Tensor:
        """Draw x_s from the reverse chain."""
        prediction = model(x_t, t, cond=cond)
        mean, small_var = model.sde.posterior(prediction.x0, x_t, s, t)
        if bool((small_var == 0).all()):
            return mean
        std = (0.5 * reverse_log_var(self.variance, prediction, model.sde, s, t)).exp().to(x_t.dtype)
        return mean + std * noise.normal_like(x_t)
