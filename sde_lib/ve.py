"""The variance-exploding SDE (Song et al. 2021, Eq. 30): alpha = 1, sigma geometric in t."""

from __future__ import annotations

import math

import torch

from .base import SDE, PerSample


class VE(SDE):
    """VE-SDE: alpha = 1 and sigma(t) = sigma_min (sigma_max / sigma_min)^t (Song et al. 2021, Eq. 30 and 31).

    At t = 0 the noise is sigma_min, not zero: samplers finish with a denoising step, and likelihoods account for it.

    Args:
        sigma_min: sigma(0), above 0.
        sigma_max: sigma(1), above sigma_min; about the largest distance between two data points (Song & Ermon 2020).

    Raises:
        ValueError: If not 0 < sigma_min < sigma_max.
    """

    t_min = 0.0

    def __init__(self, *, sigma_min: float = 0.01, sigma_max: float = 50.0) -> None:
        if not 0 < sigma_min < sigma_max < math.inf:
            raise ValueError(
                f"VE needs 0 < sigma_min < sigma_max < inf, got {sigma_min} and {sigma_max}; try 0.01 and 50"
            )
        self.sigma_min, self.sigma_max, self.prior_std = sigma_min, sigma_max, sigma_max
        self._log_min, self._log_ratio = math.log(sigma_min), math.log(sigma_max / sigma_min)

    def log_alpha(self, t: PerSample) -> PerSample:
        """0."""
        return torch.zeros_like(t, dtype=torch.float64)

    def log_sigma(self, t: PerSample) -> PerSample:
        """log sigma_min + t log(sigma_max / sigma_min)."""
        return self._log_min + t.double() * self._log_ratio

    def drift_coeff(self, t: PerSample) -> PerSample:
        """0."""
        return torch.zeros_like(t, dtype=torch.float64)

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = 2 sigma^2 log(sigma_max / sigma_min)."""
        return 2 * self._log_ratio * (2 * self.log_sigma(t)).exp()

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """log sigma = -lambda / 2 is linear in t."""
        return ((-0.5 * log_snr.double() - self._log_min) / self._log_ratio).clamp(0.0, 1.0)

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """log sigma is linear in t."""
        return ((sigma.double().log() - self._log_min) / self._log_ratio).clamp(0.0, 1.0)
