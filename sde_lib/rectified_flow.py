"""Rectified flow as an SDE: straight lines from data to noise (Liu et al. 2023; Lipman et al. 2023)."""

from __future__ import annotations

import math

import torch

from .base import SDE, PerSample


class RectifiedFlow(SDE):
    """x_t = (1 - u) x0 + u eps, with u = s t / (1 + (s - 1) t) for a shift s, so that u = t without one.

    t = 0 is data here, as everywhere in this library; Liu et al. 2023 and Ma et al. 2024 (SiT) run time the other way.
    A shift above 1 keeps the path and spends more of t at high noise, which large images need (Esser et al. 2024,
    Eq. 23). alpha(1) is exactly 0, so sampling and training stop at ``t_max`` = 0.9999; below ``t_min`` = 0.001 the
    noise is less than the bin of a grey level of 256.

    Args:
        shift: s, above 0.

    Raises:
        ValueError: If the shift is not positive and finite.
    """

    t_min = 1e-3
    t_max = 0.9999
    prior_std = 1.0

    def __init__(self, *, shift: float = 1.0) -> None:
        if not 0 < shift < math.inf:
            raise ValueError(f"RectifiedFlow needs a shift above 0 and finite, got {shift}; 1 is none")
        self.shift = shift

    def _log_stretch(self, t: PerSample) -> PerSample:
        """log(1 + (s - 1) t)."""
        return torch.log1p((self.shift - 1) * t)

    def log_alpha(self, t: PerSample) -> PerSample:
        """log(1 - u) = log(1 - t) - log(1 + (s - 1) t)."""
        t = t.double()
        return torch.log1p(-t) - self._log_stretch(t)

    def log_sigma(self, t: PerSample) -> PerSample:
        """log u = log s + log t - log(1 + (s - 1) t)."""
        t = t.double()
        return math.log(self.shift) + torch.log(t) - self._log_stretch(t)

    def alpha(self, t: PerSample) -> PerSample:
        """1 - u = (1 - t) / (1 + (s - 1) t)."""
        t = t.double()
        return (1 - t) / (1 + (self.shift - 1) * t)

    def sigma(self, t: PerSample) -> PerSample:
        """u = s t / (1 + (s - 1) t)."""
        t = t.double()
        return self.shift * t / (1 + (self.shift - 1) * t)

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f = -s / ((1 - t) (1 + (s - 1) t))."""
        t = t.double()
        return -self.shift / ((1 - t) * (1 + (self.shift - 1) * t))

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = 2 s^2 t / ((1 - t) (1 + (s - 1) t)^2)."""
        t = t.double()
        return 2 * self.shift**2 * t / ((1 - t) * (1 + (self.shift - 1) * t).square())

    def rates(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """alpha' = -u' and sigma' = u' = s / (1 + (s - 1) t)^2, at both ends too."""
        rate = self.shift / (1 + (self.shift - 1) * t.double()).square()
        return -rate, rate

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """logit t = logit u - log s, with logit u = -lambda / 2."""
        return torch.sigmoid(-0.5 * log_snr.double() - math.log(self.shift))

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """t = u / (s - (s - 1) u), u = sigma clamped to [0, 1]."""
        u = sigma.double().clamp(0.0, 1.0)
        return u / (self.shift - (self.shift - 1) * u)
