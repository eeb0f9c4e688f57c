"""Exact scores of distributions known in closed form: the oracles that samplers and likelihoods are proven against."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import SDE, check_per_sample, expand_like

from .condition import Cond
from .prediction import Prediction
from .score_model import ScoreModel


def _as_probabilities(weights: Tensor | Sequence[float], size: int) -> Tensor:
    probs = torch.as_tensor(weights, dtype=torch.float64)
    if probs.shape != (size,) or bool((probs < 0).any()) or not math.isclose(float(probs.sum()), 1.0, abs_tol=1e-6):
        raise ValueError(
            f"weights must be {size} non-negative numbers that sum to 1, got shape {list(probs.shape)} "
            f"and sum {float(probs.sum()):.9g}; divide by their sum"
        )
    # float32 weights sum to 1 within their own rounding only
    return probs / probs.sum()


def eigen_of_cov(name: str, covs: Float[Tensor, "count dim dim"]) -> tuple[Tensor, Tensor]:
    """Eigenvalues [K, D] and eigenvectors [K, D, D] of covariances; what rounding leaves of a zero is zero.

    Raises:
        ValueError: If a matrix is not symmetric and positive semi-definite.
    """
    eigenvalues, eigenvectors = torch.linalg.eigh(covs)
    largest = eigenvalues.abs().amax(1, keepdim=True)
    skew = (covs - covs.mT).abs().flatten(1).amax(1)
    if bool((skew > 1e-6 * largest[:, 0]).any()) or bool((eigenvalues < -1e-6 * largest).any()):
        raise ValueError(f"{name} must be symmetric and positive semi-definite; pass a factor A as A @ A.mT")
    # the rounding of a zero eigenvalue would outweigh a small sigma^2
    is_zero = eigenvalues <= covs.shape[1] * torch.finfo(torch.float64).eps * largest
    return eigenvalues.masked_fill(is_zero, 0.0), eigenvectors


class GaussianMixtureScoreModel(ScoreModel):
    """The exact x0 and eps of data drawn from sum_k w_k N(mean_k, cov_k).

    x_t is then a mixture of N(alpha mean_k, alpha^2 cov_k + sigma^2 I), whose posterior means are linear in x_t. The
    arithmetic is in float64; the answer has the dtype of x_t.

    Args:
        sde: The SDE.
        means: [K, D].
        covs: Symmetric, positive semi-definite, [K, D, D].
        weights: [K], sum 1; equal weights if None.

    Raises:
        ValueError: If the shapes disagree, the weights do not sum to 1 or a matrix is no covariance.
    """

    means: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    log_weights: Tensor

    def __init__(
        self, sde: SDE, *, means: Tensor, covs: Tensor, weights: Tensor | Sequence[float] | None = None
    ) -> None:
        super().__init__(sde)
        means, covs = means.double(), covs.double()
        if means.ndim != 2 or covs.shape != (*means.shape, means.shape[1]):
            raise ValueError(
                f"means must be [K, D] and covs [K, D, D], got {list(means.shape)} and {list(covs.shape)}; "
                "add the missing dimensions"
            )
        size = means.shape[0]
        probs = _as_probabilities([1 / size] * size if weights is None else weights, size)
        eigenvalues, eigenvectors = eigen_of_cov("covs", covs)
        self.register_buffer("means", means)
        self.register_buffer("eigenvalues", eigenvalues)
        self.register_buffer("eigenvectors", eigenvectors)
        self.register_buffer("log_weights", probs.log())

    def _components(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Offsets [B, K, D] and variances [B, K, D] in each component's eigenbasis, and log w_k N_k(x), [B, K]."""
        offset = x.double()[:, None] - alpha[:, None, None] * self.means
        rotated = torch.einsum("bkd,kde->bke", offset, self.eigenvectors)
        var = alpha[:, None, None].square() * self.eigenvalues + sigma[:, None, None].square()
        log_density = -0.5 * (rotated.square() / var + var.log() + math.log(2 * math.pi)).sum(-1)
        return rotated, var, self.log_weights + log_density

    def log_prob(self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
        """log p_t(x) in nats, float64 [B]."""
        return self._components(x, self.sde.alpha(t), self.sde.sigma(t))[2].logsumexp(1)

    def covs(self) -> Float[Tensor, "components dim dim"]:
        """The components' covariances, float64 [K, D, D]."""
        return torch.einsum("kde,ke,kfe->kdf", self.eigenvectors, self.eigenvalues, self.eigenvectors)

    def posterior(
        self, operator: Float[Tensor, "observed dim"], y: Float[Tensor, " observed"], *, noise_std: float
    ) -> GaussianMixtureScoreModel:
        """The mixture that p(x0 | y) is, where y = A x0 + n and n ~ N(0, noise_std^2 I).

        With gain G = C A^T (A C A^T + noise_std^2 I)^-1 of each component, its mean becomes m + G (y - A m), its
        covariance (I - G A) C, and its weight is multiplied by N(y; A m, A C A^T + noise_std^2 I).

        Args:
            operator: A, [M, D].
            y: The observation, [M].
            noise_std: At least 0; 0 needs A C A^T of full rank.

        Raises:
            ValueError: If the shapes do not fit, noise_std is negative, or y has no density given a component.
        """
        if not noise_std >= 0:
            raise ValueError(f"noise_std must be at least 0, got {noise_std}; 0 is no noise")
        operator, y = operator.double(), y.double()
        if operator.ndim != 2 or operator.shape[1] != self.means.shape[1] or y.shape != operator.shape[:1]:
            raise ValueError(
                f"the operator must be [M, {self.means.shape[1]}] and y [M], got {list(operator.shape)} and "
                f"{list(y.shape)}; one row of the operator a number of y"
            )
        crossed = self.covs() @ operator.mT
        observed = operator @ crossed + noise_std**2 * torch.eye(len(y), dtype=torch.float64, device=y.device)
        factor, failed = torch.linalg.cholesky_ex(observed)
        if bool(failed.any()):
            raise ValueError(f"y has no density with noise_std = {noise_std:g}; raise it, or drop dependent rows")
        gain = torch.cholesky_solve(crossed.mT, factor).mT
        off = y - self.means @ operator.mT
        normal = torch.distributions.MultivariateNormal(torch.zeros_like(off), scale_tril=factor)
        # symmetric, and without the negative eigenvalues of a difference
        left = torch.eye(self.means.shape[1], dtype=torch.float64, device=y.device) - gain @ operator
        covs = left @ self.covs() @ left.mT + noise_std**2 * gain @ gain.mT
        return GaussianMixtureScoreModel(
            self.sde,
            means=self.means + torch.einsum("kdm,km->kd", gain, off),
            covs=covs,
            weights=(self.log_weights + normal.log_prob(off)).softmax(0),
        )

    def mean_and_cov(self) -> tuple[Tensor, Tensor]:
        """Mean [D] and covariance [D, D] of the data distribution."""
        weights = self.log_weights.exp()
        mean = weights @ self.means
        second = torch.einsum("k,kdf->df", weights, self.covs() + self.means[:, :, None] * self.means[:, None])
        return mean, second - torch.outer(mean, mean)

    def sample_data(self, num_samples: int, generator: torch.Generator | None = None) -> Float[Tensor, "batch dim"]:
        """Draw x0, float64 [num_samples, D]."""
        k = torch.multinomial(self.log_weights.exp(), num_samples, replacement=True, generator=generator)
        z = torch.randn(num_samples, self.means.shape[1], dtype=torch.float64, generator=generator)
        return self.means[k] + torch.einsum("nde,ne->nd", self.eigenvectors[k], self.eigenvalues[k].sqrt() * z)

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t]; cond is ignored."""
        check_per_sample("t", t, x_t.shape[0])
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        rotated, var, log_density = self._components(x_t, alpha, sigma)
        share = self._log_share(log_density, cond).softmax(1)
        # eps from its own formula: (x_t - alpha x0) / sigma would lose its digits at small sigma
        whitened = torch.einsum("bke,kde->bkd", rotated / var, self.eigenvectors)
        eps = sigma[:, None] * torch.einsum("bk,bkd->bd", share, whitened)
        shift = torch.einsum("bke,kde->bkd", self.eigenvalues * rotated / var, self.eigenvectors)
        x0 = torch.einsum("bk,bkd->bd", share, self.means + alpha[:, None, None] * shift)
        return Prediction(x0=x0.to(x_t.dtype), eps=eps.to(x_t.dtype), sigma=sigma)

    def _log_share(self, log_density: Tensor, cond: Cond | None) -> Tensor:
        """log of each component's share in x_t but for a constant, [B, K]; here whatever the condition."""
        return log_density


class DiscreteScoreModel(ScoreModel):
    """The exact x0 and eps of data on finitely many points, such as images of a few grey levels.

    E[x0 | x_t] is the points' mean under weights p_k exp(-|x_t - alpha point_k|^2 / (2 sigma^2)).

    Args:
        sde: The SDE.
        points: [K, ...], distinct.
        probs: [K], sum 1.
        variance_fraction: If given, reported as a learned variance would be, the same everywhere.

    Raises:
        ValueError: If the probabilities do not fit the points.
    """

    points: Tensor
    probs: Tensor

    def __init__(
        self, sde: SDE, *, points: Tensor, probs: Tensor | Sequence[float], variance_fraction: float | None = None
    ) -> None:
        super().__init__(sde)
        self.register_buffer("points", points.double())
        self.register_buffer("probs", _as_probabilities(probs, points.shape[0]))
        self.variance_fraction = variance_fraction

    def entropy(self) -> float:
        """-sum p log p, in nats: no code can be shorter on average."""
        return float(torch.special.entr(self.probs).sum())

    def sample_data(self, num_samples: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw x0, float64 [num_samples, ...]."""
        return self.points[torch.multinomial(self.probs, num_samples, replacement=True, generator=generator)]

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        """E[x0 | x_t] and E[eps | x_t]; cond is ignored."""
        check_per_sample("t", t, x_t.shape[0])
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        points = self.points.unsqueeze(1).flatten(1)
        offset = x_t.double().unsqueeze(1).flatten(1)[:, None] - alpha[:, None, None] * points
        log_weight = self.probs.log() - 0.5 * offset.square().sum(-1) / sigma[:, None].square()
        share = log_weight.softmax(1)
        x0 = (share @ points).reshape(x_t.shape)
        eps = (x_t.double() - expand_like(alpha, x0) * x0) / expand_like(sigma, x0)
        fraction = None if self.variance_fraction is None else torch.full_like(x_t, self.variance_fraction)
        return Prediction(x0=x0.to(x_t.dtype), eps=eps.to(x_t.dtype), sigma=sigma, variance_fraction=fraction)
