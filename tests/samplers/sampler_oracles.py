"""Models and SDEs that the sampler tests share."""

import numpy as np
import torch

from models import GaussianMixtureScoreModel, Prediction, ScoreModel
from sde_lib import VE, VP, CosineVP, SubVP, Tabulated, expand_like

SDES = {
    "vp": VP(),
    "cosine": CosineVP(),
    "subvp": SubVP(),
    "ve": VE(sigma_max=20.0),
    "ddpm": Tabulated.ddpm(),
    # the first level is fine beside the data of these tests, so that going from it to 0 in one step is no matter
    "ncsn": Tabulated.ncsn(num_steps=200, sigma_min=0.01, sigma_max=20.0),
}


class GaussianModel(ScoreModel):
    """Exact x0 and eps of independent N(mean, var), elementwise, so that batches cannot matter even in rounding."""

    def __init__(self, sde, *, mean=0.7, var=0.3):
        super().__init__(sde)
        self.mean, self.var = mean, var

    def forward(self, x_t, t, *, cond=None):
        alpha, sigma = self.sde.alpha(t), self.sde.sigma(t)
        power = alpha**2 * self.var + sigma**2
        offset = x_t - expand_like(alpha * self.mean, x_t)
        return Prediction(
            x0=self.mean + expand_like(alpha * self.var / power, x_t) * offset,
            eps=expand_like(sigma / power, x_t) * offset,
            sigma=sigma,
        )


class WithFraction(ScoreModel):
    """A model that says of its variance what it is told to: a number, or a function of x_t."""

    def __init__(self, model, fraction):
        super().__init__(model.sde)
        self.model, self.fraction = model, fraction

    def forward(self, x_t, t, *, cond=None):
        raw = self.model(x_t, t, cond=cond)
        fraction = self.fraction(x_t) if callable(self.fraction) else torch.full_like(x_t, self.fraction)
        return Prediction(x0=raw.x0, eps=raw.eps, sigma=raw.sigma, variance_fraction=fraction)


class Stacked(ScoreModel):
    """Many points in one sample, [B, M D] as B M points of D dimensions: few noise streams make many draws."""

    def __init__(self, model, dim):
        super().__init__(model.sde)
        self.model, self.dim = model, dim

    def forward(self, x_t, t, *, cond=None):
        points = x_t.reshape(-1, self.dim)
        raw = self.model(points, t.repeat_interleave(x_t.shape[1] // self.dim))
        return Prediction(x0=raw.x0.reshape(x_t.shape), eps=raw.eps.reshape(x_t.shape), sigma=self.sde.sigma(t))


def mixture(sde):
    """Two unequal, correlated, well separated Gaussians in the plane."""
    means = torch.tensor([[-0.8, 0.3], [0.6, -0.4]])
    covs = torch.tensor([[[0.05, 0.03], [0.03, 0.08]], [[0.10, -0.02], [-0.02, 0.04]]])
    return GaussianMixtureScoreModel(sde, means=means, covs=covs, weights=[0.35, 0.65])


def coefficients(sde, grid):
    """alpha, sigma on a grid, as numpy."""
    return sde.alpha(grid).numpy(), sde.sigma(grid).numpy()


def reverse_step(kind, alpha_t, sigma_t, alpha_s, sigma_s):
    """x_s = a x0 + b eps + c x_t + d z, written from the papers with plain alpha and sigma.

    ``kind`` is "small", "large", ("learned", fraction) or ("ddim", eta).
    """
    ratio = alpha_t / alpha_s
    forward_var = sigma_t**2 - ratio**2 * sigma_s**2
    small = forward_var * sigma_s**2 / sigma_t**2
    if kind[0] == "ddim":
        return alpha_s, np.sqrt(max(sigma_s**2 - kind[1] ** 2 * small, 0)), 0.0, kind[1] * np.sqrt(small)
    if sigma_s == 0:
        std = 0.0
    elif kind[0] == "learned":
        std = np.sqrt(forward_var ** kind[1] * small ** (1 - kind[1]))
    else:
        std = np.sqrt({"small": small, "large": forward_var}[kind])
    return alpha_s * forward_var / sigma_t**2, 0.0, ratio * sigma_s**2 / sigma_t**2, std
