"""Variance-preserving SDEs: sigma^2 = 1 - alpha^2 (Ho et al. 2020; Song et al. 2021, Eq. 11)."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch

from .base import SDE, PerSample


class VariancePreserving(SDE):
    """sigma^2 = 1 - alpha^2, so that f = -beta/2 and g^2 = beta = -2 f. Subclasses give ``log_alpha``."""

    prior_std = 1.0

    def log_sigma(self, t: PerSample) -> PerSample:
        """log sigma = 1/2 log(1 - alpha^2), through expm1 so that small t keeps its digits."""
        return 0.5 * torch.log(-torch.expm1(2 * self.log_alpha(t)))

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = beta = -2 f."""
        return -2 * self.drift_coeff(t)

    @abstractmethod
    def time_from_log_alpha(self, log_alpha: PerSample) -> PerSample:
        """The t at which log alpha(t) is ``log_alpha``, clamped to [0, 1]."""

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """Inverse of lambda(t), through log alpha = 1/2 log sigmoid(lambda)."""
        return self.time_from_log_alpha(0.5 * torch.nn.functional.logsigmoid(log_snr.double()))

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """Inverse of sigma(t). Above about 1 - 1e-8, sigma no longer tells times apart in float64; prefer log-SNR."""
        return self.time_from_log_alpha(0.5 * torch.log1p(-sigma.double().square().clamp(max=1.0)))


class VP(VariancePreserving):
    """VP-SDE with linear beta(t) = beta_min + t (beta_max - beta_min) (Song et al. 2021, Eq. 32-33):

        log alpha(t) = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2.

    This is the limit of many steps of DDPM, not DDPM itself: for Ho et al.'s table take ``Tabulated.ddpm()``.

    Args:
        beta_min: beta(0), above 0.
        beta_max: beta(1), at least beta_min.

    Raises:
        ValueError: If not 0 < beta_min <= beta_max < inf.
    """

    def __init__(self, *, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max < math.inf:
            raise ValueError(f"VP needs 0 < beta_min <= beta_max < inf, got {beta_min} and {beta_max}; try 0.1 and 20")
        self.beta_min, self.beta_max = beta_min, beta_max

    def log_alpha(self, t: PerSample) -> PerSample:
        """-t^2 (beta_max - beta_min) / 4 - t beta_min / 2."""
        t = t.double()
        return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f = -beta(t) / 2."""
        return -0.5 * (self.beta_min + t.double() * (self.beta_max - self.beta_min))

    def time_from_log_alpha(self, log_alpha: PerSample) -> PerSample:
        """The positive root of the quadratic, in the form that does not cancel."""
        c = -4 * log_alpha.double()
        slope = self.beta_max - self.beta_min
        t = c / (self.beta_min + (self.beta_min**2 + slope * c).sqrt())
        # c and the root are both infinite at alpha = 0
        return torch.where(torch.isinf(c), torch.ones_like(t), t).clamp(0.0, 1.0)


class CosineVP(VariancePreserving):
    """VP-SDE with the cosine schedule (Nichol & Dhariwal 2021, Eq. 17):

        alpha_bar(t) = h(t) / h(0),   h(t) = cos^2( (t + s) / (1 + s) * pi / 2 ).

    alpha(1) is exactly 0, so sampling and training stop at ``t_max`` = 0.999. Their table with beta clipped at 0.999 is
    ``Tabulated.improved_ddpm()``.

    Args:
        s: Offset that keeps the first noise above a grey level's width; at least 0.

    Raises:
        ValueError: If s is negative.
    """

    t_max = 0.999

    def __init__(self, *, s: float = 0.008) -> None:
        if not 0 <= s < math.inf:
            raise ValueError(f"CosineVP needs s >= 0, and finite, got {s}; try 0.008")
        self.s = s

    def log_alpha(self, t: PerSample) -> PerSample:
        """log cos(phase(t)) - log cos(phase(0)), where phase(t) = (t + s) / (1 + s) pi / 2."""
        t = t.double()
        rate = 0.5 * math.pi / (1 + self.s)
        # 1 - alpha = (cos phase(0) - cos phase(t)) / cos phase(0) as a product keeps its digits near t = 0; near t = 1
        # the cosine keeps them as a sine of the distance to t = 1
        drop = 2 * torch.sin(0.5 * rate * (t + 2 * self.s)) * torch.sin(0.5 * rate * t) / math.cos(rate * self.s)
        near_one = torch.log(torch.sin(rate * (1 - t))) - math.log(math.cos(rate * self.s))
        return torch.where(drop < 0.5, torch.log1p(-drop.clamp(max=0.5)), near_one)

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f = -pi / (2 (1 + s)) tan( (t + s) / (1 + s) * pi / 2 )."""
        angle = 0.5 * math.pi * (1 - t.double()) / (1 + self.s)
        return -0.5 * math.pi / (1 + self.s) / torch.tan(angle)

    def time_from_log_alpha(self, log_alpha: PerSample) -> PerSample:
        """1 - alpha gives a quadratic in tan(rate t / 2); its positive root, in the form that does not cancel."""
        rate = 0.5 * math.pi / (1 + self.s)
        sine, cosine = math.sin(rate * self.s), math.cos(rate * self.s)
        drop = -torch.expm1(log_alpha.double())
        tangent = cosine * drop / (sine + (sine**2 + cosine**2 * drop * (2 - drop)).sqrt())
        # at s = 0 and alpha = 1 this is 0 / 0
        return torch.where(drop > 0, 2 * torch.atan(tangent) / rate, 0.0).clamp(0.0, 1.0)
