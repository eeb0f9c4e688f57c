"""The sub-VP SDE (Song et al. 2021, Eq. 12 and 29): alpha as in VP, sigma = 1 - alpha^2."""

from __future__ import annotations

import torch

from .base import PerSample
from .vp import VP


class SubVP(VP):
    """Sub-VP SDE with linear beta:

        log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2,   sigma(t) = 1 - alpha(t)^2,

    so that g^2 = beta (1 - alpha^4), never above the VP variance.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1), at least beta_min.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max.
    """

    def log_sigma(self, t: PerSample) -> PerSample:
        """log(1 - alpha^2), through expm1."""
        return torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = beta (1 - alpha^4) (Song et al. 2021, Eq. 12)."""
        return 2 * self.drift_coeff(t) * torch.expm1(4 * self.log_alpha(t))

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """(1 - sigma) / sigma^2 = exp(lambda) is a quadratic in sigma: sigma = 2 / (1 + sqrt(1 + 4 exp(lambda)))."""
        log_snr = log_snr.double()
        log_root = 0.5 * torch.logaddexp(torch.zeros_like(log_snr), log_snr + torch.log(torch.tensor(4.0).double()))
        log_sigma = -torch.nn.functional.softplus(log_root, threshold=60) + torch.log(torch.tensor(2.0).double())
        # 2 log alpha = log(1 - sigma) = lambda + 2 log sigma: the second form keeps its digits where sigma is near 1
        direct = torch.log1p(-log_sigma.exp().clamp(max=1.0))
        return self.time_from_log_alpha(0.5 * torch.where(log_snr > 0, direct, log_snr + 2 * log_sigma))

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """Inverse of sigma = 1 - alpha^2."""
        return self.time_from_log_alpha(0.5 * torch.log1p(-sigma.double().clamp(max=1.0)))
