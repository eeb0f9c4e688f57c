"""DDIM (Song et al. 2020, "Denoising Diffusion Implicit Models"), for any SDE and any grid."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sde_lib import NoiseStreams, Point, combine

from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler


@register_sampler("ddim")
class DDIMSampler(GridSampler):
    """DDIM (Song et al. 2020, Eq. 12 and 16).

        x_s = alpha_s x0 + sqrt(sigma_s^2 - var) eps + sqrt(var) z,   var = eta^2 Var q(x_s | x_t, x0)

    eta = 0 is deterministic, of order 1: Euler's method on the probability flow in sigma / alpha. eta = 1 is ancestral
    sampling with the small variance. NFE is num_steps, plus one with a final denoising.

    Args:
        eta: Share of the reverse chain's noise, in [0, 1].
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If eta is outside [0, 1].
    """

    def __init__(self, *, eta: float = 0.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must lie in [0, 1], got {eta}; 0 is deterministic, 1 is ancestral")
        self.eta = eta

    @property
    def follows_flow(self) -> bool:
        """True without noise."""
        return self.eta == 0

    @property
    def ddim_steps(self) -> int | None:
        """The number of steps, on the uniform grid and without noise."""
        return self.num_steps if self.eta == 0 and isinstance(self.grid, str) and self.grid == "uniform" else None

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Eq. 12."""
        prediction = denoise(x, t)
        # Var q(x_s | x_t, x0) = -sigma_s^2 expm1(lambda_t - lambda_s)
        var = -((self.eta * s.sigma) ** 2) * math.expm1(t.log_snr - s.log_snr)
        terms = [(s.alpha, prediction.x0), (math.sqrt(s.sigma**2 - var), prediction.eps)]
        return combine(*terms) if self.eta == 0 else combine(*terms, (math.sqrt(var), noise.normal_like(x)))
