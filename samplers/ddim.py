"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models"), for any SDE and any grid."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from models import ScoreModel
from sde_lib import NoiseStreams, expand_like

from .base import StepSampler
from .registry import register_sampler


@register_sampler("ddim")
class DDIMSampler(StepSampler):
    """x_s = alpha_s x0 + sqrt(sigma_s^2 - var) eps + sqrt(var) z,   var = eta^2 Var q(x_s | x_t, x0)

    (Song et al. 2020, Eq. 12 and 16). eta = 0 is deterministic, of order 1, and a step of the probability flow;
    eta = 1 is ancestral sampling with the small variance. NFE is num_steps, plus one with a final denoising.

    Args:
        eta: Share of the reverse chain's noise, in [0, 1].
        **kwargs: See ``StepSampler``.

    Raises:
        ValueError: If eta is outside [0, 1].
    """

    def __init__(self, *, eta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}; 0 is deterministic, 1 is ancestral")
        self.eta = eta

    def step(
        self, model: ScoreModel, x_t: Tensor, t: Tensor, s: Tensor, *, cond: Tensor | None, noise: NoiseStreams
    ) -> Tensor:
        """One step of Eq. 12."""
        sde = model.sde
        prediction = model(x_t, t, cond=cond)
        sigma_s = sde.sigma(s)
        # Var q(x_s | x_t, x0) / sigma_s^2, as a ratio so that it is there at sigma_s = 0 too
        var_ratio = -(self.eta**2) * torch.expm1(sde.log_snr(t) - sde.log_snr(s))
        x_s = expand_like(sde.alpha(s), x_t) * prediction.x0
        x_s = x_s + expand_like(sigma_s * (1 - var_ratio).sqrt(), x_t) * prediction.eps
        if self.eta == 0 or bool((sigma_s == 0).all()):
            return x_s
        return x_s + expand_like(sigma_s * var_ratio.sqrt(), x_t) * noise.normal_like(x_t)
