"""Points of an SDE: times with their coefficients as plain numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from .base import SDE

_NO_SIGNAL = 1e-12


@dataclass(frozen=True)
class Point:
    """An SDE at one time, as Python floats: all that a step needs to know of it.

    Attributes:
        t: Time.
        alpha: Signal scale.
        sigma: Noise standard deviation.
        log_snr: lambda = log(alpha^2 / sigma^2); infinite where sigma or alpha is 0.
        sde: The SDE.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float
    sde: SDE = field(repr=False)

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha, the noise in the scale of the data: the time of Karras et al. 2022.

        Raises:
            ValueError: If there is no signal left, as for the cosine schedule at t = 1.
        """
        self.check_signal()
        return self.sigma / self.alpha

    @property
    def drift_coeff(self) -> float:
        """f(t) = d log alpha / dt."""
        return float(self.sde.drift_coeff(torch.tensor([self.t], dtype=torch.float64)))

    @property
    def diffusion_sq(self) -> float:
        """g(t)^2."""
        return float(self.sde.diffusion_sq(torch.tensor([self.t], dtype=torch.float64)))

    @property
    def rates(self) -> tuple[float, float]:
        """alpha' and sigma', see ``SDE.rates``."""
        alpha_rate, sigma_rate = self.sde.rates(torch.tensor([self.t], dtype=torch.float64))
        return float(alpha_rate), float(sigma_rate)

    def times_for(self, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
        """The time of every sample of a batch, float64 [B], as models take it."""
        return torch.full((x.shape[0],), self.t, dtype=torch.float64, device=x.device)

    def check_signal(self) -> None:
        """Refuse a point without signal, in the scale of whose data the noise is beyond float32.

        Raises:
            ValueError: If alpha is below 1e-12 sigma.
        """
        if self.alpha == 0:
            raise ValueError(
                f"alpha is 0 at t = {self.t:.6g}, where this sampler cannot start; begin the grid at sde.t_max, and if "
                f"that is here, set it lower, such as {0.999 * self.t:.6g}"
            )
        if self.alpha < _NO_SIGNAL * self.sigma:
            raise ValueError(
                f"hardly any signal is left at t = {self.t:.6g}, alpha is {self.alpha:.3g}, where this sampler cannot "
                "start; take an SDE with less noise, such as fewer or smaller betas"
            )


@torch.no_grad()
def points_of(sde: SDE, times: Float[Tensor, " points"]) -> list[Point]:
    """The points of an SDE at some times, computed together in float64.

    Args:
        sde: The SDE.
        times: Times in [0, 1], [n].

    Returns:
        One point a time.
    """
    times = times.detach().cpu().double()
    rows = torch.stack([times, *sde.alpha_sigma(times), sde.log_snr(times)], 1).tolist()
    return [Point(t, alpha, sigma, log_snr, sde) for t, alpha, sigma, log_snr in rows]


def points_at_log_snr(sde: SDE, log_snr: Sequence[float]) -> list[Point]:
    """The points whose log-SNR are nearest to these, found together: of one point at a time each costs as much."""
    return points_of(sde, sde.time_from_log_snr(torch.tensor(log_snr, dtype=torch.float64)))
