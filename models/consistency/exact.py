"""The exact consistency map of 1-D mixtures of Gaussians: the oracle that consistency models are proven against."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import check_per_sample, expand_like

from ..condition import Cond
from ..exact import GaussianMixtureScoreModel
from .model import ConsistencyModel


class QuantileFlow(ConsistencyModel):
    """f(x_t, t) = Q_end(F_r(x_t / alpha)), with the cumulative distribution F_r of y = x0 + r z, and Q_end the inverse
    of that at ``t_end``.

    In one dimension the probability flow keeps the order of points and carries one distribution over to the other, and
    there is one map alone that does so: quantile to quantile. Each number of x_t is taken for a sample of its own.

    Args:
        mixture: The exact model of one dimension, of components with a variance.
        t_end: See ``ConsistencyModel``.

    Raises:
        ValueError: If the mixture has more dimensions, or a component is a point.
    """

    def __init__(self, mixture: GaussianMixtureScoreModel, *, t_end: float = 0.0) -> None:
        super().__init__(mixture, t_end=t_end)
        if mixture.means.shape[1] != 1 or bool((mixture.eigenvalues <= 0).any()):
            raise ValueError(
                f"the mixture must be of one dimension and have variances above 0, got {mixture.means.shape[1]} "
                "dimensions; pass another"
            )
        self._means, self._vars, self._log_weights = mixture.means[:, 0], mixture.eigenvalues[:, 0], mixture.log_weights

    def _tails(self, y: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
        """log F_r(y) and log(1 - F_r(y))."""
        z = (y[..., None] - self._means) / (self._vars + ratio[..., None].square()).sqrt()
        below, above = torch.special.log_ndtr(z), torch.special.log_ndtr(-z)
        return (self._log_weights + below).logsumexp(-1), (self._log_weights + above).logsumexp(-1)

    def forward(
        self,
        x_t: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        *,
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """The map, by bisection to the last digits of float64; cond is ignored."""
        check_per_sample("t", t, x_t.shape[0])
        alpha, sigma = self.sde.alpha_sigma(t)
        x = x_t.double()
        y, ratio = x / expand_like(alpha, x), expand_like(sigma / alpha, x).expand(x.shape)
        below, above = self._tails(y, ratio)
        # in the tail in which the point lies: the other one has lost its digits
        lower, end = below < above, torch.full_like(y, self.ratio_end)
        reach = 40 * float((self._vars.max() + self.ratio_end**2).sqrt())
        low, high = (torch.full_like(y, float(m)) for m in (self._means.min() - reach, self._means.max() + reach))
        for _ in range(100):
            middle = 0.5 * (low + high)
            there_below, there_above = self._tails(middle, end)
            right = torch.where(lower, there_below < below, there_above > above)
            low, high = torch.where(right, middle, low), torch.where(right, high, middle)
        return (0.5 * (low + high)).to(x_t.dtype)
