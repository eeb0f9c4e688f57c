"""What one call of ``sample`` works with: the model and its condition, the noise, and points of the SDE as numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Prediction, ScoreModel
from sde_lib import SDE, NoiseStreams


@dataclass(frozen=True)
class Point:
    """A time of an SDE with its coefficients, as Python floats: all that a step needs to know of the SDE.

    Attributes:
        t: Time.
        alpha: Signal scale.
        sigma: Noise standard deviation.
        log_snr: lambda = log(alpha^2 / sigma^2); infinite where sigma or alpha is 0.
    """

    t: float
    alpha: float
    sigma: float
    log_snr: float

    @property
    def noise_ratio(self) -> float:
        """sigma / alpha, the noise in the scale of the data: the time of Karras et al. 2022.

        Raises:
            ValueError: If there is no signal left, as for the cosine schedule at t = 1.
        """
        if self.alpha == 0:
            raise ValueError(
                f"alpha is 0 at t = {self.t:.6g}, where this sampler cannot start; end the grid at sde.t_max"
            )
        return self.sigma / self.alpha


def points_of(sde: SDE, times: Float[Tensor, " points"]) -> list[Point]:
    """The SDE's coefficients at some times, computed together in float64.

    Args:
        sde: The SDE.
        times: Times in [0, 1], [n].

    Returns:
        One point a time.
    """
    times = times.detach().cpu().double()
    columns = (times, *sde.alpha_sigma(times), sde.log_snr(times))
    return [Point(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@dataclass(frozen=True)
class Run:
    """One call of ``sample``.

    Attributes:
        model: The model.
        cond: Its condition, or None.
        noise: One random stream a sample.
    """

    model: ScoreModel
    cond: Tensor | None
    noise: NoiseStreams

    @property
    def sde(self) -> SDE:
        """The model's SDE."""
        return self.model.sde

    def predict(self, x: Float[Tensor, "batch *shape"], point: Point) -> Prediction:
        """Call the model at a point."""
        return self.model(x, time_at(point, x), cond=self.cond)

    def points_at_log_snr(self, log_snr: Sequence[float]) -> list[Point]:
        """The points whose log-SNR are nearest to these, found together: of one point at a time each costs as much."""
        return points_of(self.sde, self.sde.time_from_log_snr(torch.tensor(log_snr, dtype=torch.float64)))


def time_at(point: Point, x: Float[Tensor, "batch *shape"]) -> Float[Tensor, " batch"]:
    """A point's time for every sample of a batch, float64 [B]."""
    return torch.full((x.shape[0],), point.t, dtype=torch.float64, device=x.device)


def combine(*terms: tuple[float, Tensor]) -> Tensor:
    """sum_i coefficient_i tensor_i, a new tensor, in one pass a term.

    Terms whose coefficient is 0 are left out, so that an infinity there does no harm; one term must be left.
    """
    terms = tuple(term for term in terms if term[0] != 0) or terms[:1]
    (first, tensor), *rest = terms
    out = tensor * first
    for coefficient, tensor in rest:
        out.add_(tensor, alpha=coefficient)
    return out
