"""Data in the plane of which a measurement leaves a posterior in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models import Condition, GaussianMixtureScoreModel, Inpainting, LabelledMixtureScoreModel
from sde_lib import VP, Point

from ..gaussian import Moments

# laws depend on sigma / alpha alone: one SDE is enough
SDE = VP()
# the first number of x is seen, the second hidden
OPERATOR = Inpainting((2,), mask=torch.tensor([True, False]))
# errors of mean and covariance, in this order
QUANTITIES = ("mean_seen", "mean_hidden", "var_seen", "var_hidden", "cov")


@dataclass(frozen=True)
class Problem:
    """y = x_1 + n, n ~ N(0, noise_std^2), of x drawn from equally likely Gaussians of one covariance.

    Attributes:
        name: Its name.
        means: Of the Gaussians, [K, 2].
        cov: Their covariance, [2, 2].
        y: The measurement.
        noise_std: Standard deviation of n.
    """

    name: str
    means: Tensor
    cov: Tensor
    y: float
    noise_std: float

    @cached_property
    def prior(self) -> GaussianMixtureScoreModel:
        """The exact model of x."""
        return GaussianMixtureScoreModel(SDE, means=self.means, covs=self.cov.expand(len(self.means), 2, 2))

    @cached_property
    def posterior(self) -> GaussianMixtureScoreModel:
        """The exact model of x given y."""
        seen, y = torch.tensor([[1.0, 0.0]], dtype=torch.float64), torch.tensor([self.y], dtype=torch.float64)
        return self.prior.posterior(seen, y, noise_std=self.noise_std)

    @cached_property
    def log_evidence(self) -> float:
        """log p(y)."""
        normal = torch.distributions.Normal(self.means[:, 0], (self.cov[0, 0] + self.noise_std**2).sqrt())
        y = torch.tensor(self.y, dtype=torch.float64)
        return float((self.prior.log_weights + normal.log_prob(y)).logsumexp(0))

    @cached_property
    def scales(self) -> Tensor:
        """Standard deviations of the posterior, [2]; 1, that of the data, for a number without any."""
        std = self.posterior.mean_and_cov()[1].diagonal().clamp(min=0).sqrt()
        return torch.where(std > 1e-9, std, 1.0)

    def told(self, batch: int) -> Condition:
        """y, once a sample."""
        return Condition(measurement=torch.full((batch, 1), self.y, dtype=torch.float64))

    def noisy(self, point: Point) -> Moments:
        """Mean and covariance of x_t given y."""
        mean, cov = self.posterior.mean_and_cov()
        return point.alpha * mean, point.alpha**2 * cov + point.sigma**2 * torch.eye(2, dtype=torch.float64)

    def denoised(self, point: Point) -> Moments:
        """Mean and covariance of E[x0 | x_t, y] of Gaussian data, in which samplers end."""
        mean, cov = self.posterior.mean_and_cov()
        return mean, point.alpha**2 * cov @ torch.linalg.solve(self.noisy(point)[1], cov)

    def share_of_first(self, x: Tensor) -> Tensor:
        """The probability that x came from the first Gaussian, [B]; its mean over p(x | y) is that mode's weight."""
        of, weights = self.posterior, self.posterior.log_weights.exp()
        labels = range(len(weights))
        modes = LabelledMixtureScoreModel(SDE, means=of.means, covs=of.covs(), weights=weights, labels=list(labels))
        return modes.class_log_prob(x, torch.zeros(len(x), dtype=torch.float64))[:, 0].exp()


def _plane(*rows: tuple[float, float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


_CORRELATED = _plane((1, 0.8), (0.8, 1))
GAUSSIAN = Problem("Gaussian", _plane((0, 0)), _CORRELATED, y=1.0, noise_std=0.1)
NOISELESS = Problem("Gaussian, no noise", _plane((0, 0)), _CORRELATED, y=1.0, noise_std=0.0)
TWO_MODES = Problem("two modes", _plane((-1, -1), (1, 1)), _plane((0.15, 0.06), (0.06, 0.15)), y=0.15, noise_std=0.3)
