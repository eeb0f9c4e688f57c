"""Identities of guidance on a labelled mixture, which hold to rounding at every point."""

from __future__ import annotations

import torch
from torch import Tensor

from models import (
    CFGPlusPlusWeight,
    ClassifierGuidedScoreModel,
    GaussianMixtureScoreModel,
    GuidedScoreModel,
    LabelledMixtureScoreModel,
    Prediction,
)
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams, points_of

from .checked import Checked, times_of

ROUNDING = 1e-12
# three Gaussians in the plane, of which class 1 has two
_MEANS = ((-0.8, 0.3), (0.6, -0.4), (0.2, 0.9))
_COVS = (((0.05, 0.03), (0.03, 0.08)), ((0.10, -0.02), (-0.02, 0.04)), ((0.03, 0.0), (0.0, 0.12)))
_LABELS, _WEIGHTS = (0, 1, 1), (0.3, 0.5, 0.2)
_BATCH, _STEPS, _LAMBDA = 60, 12, 0.6


def labelled(sde: SDE) -> LabelledMixtureScoreModel:
    """A mixture of two classes, one of them with two modes."""
    return LabelledMixtureScoreModel(
        sde,
        means=torch.tensor(_MEANS, dtype=torch.float64),
        covs=torch.tensor(_COVS, dtype=torch.float64),
        labels=_LABELS,
        weights=_WEIGHTS,
    )


def prove_identities(sde: SDE) -> dict[str, Checked]:
    """The largest errors of what is exact for any model, over points of q(x_t) at many t.

    Returns:
        By the identity's name: the error of eps and of x0 (this one in units of sigma / alpha where that is above 1),
        0 where the bits must be the same.
    """
    exact = labelled(sde)
    t = sde.t_min + (sde.t_max - sde.t_min) * torch.linspace(0.001, 0.999, _BATCH, dtype=torch.float64)
    noise = NoiseStreams(0, range(_BATCH))
    labels = torch.arange(_BATCH) % 2
    means = torch.tensor(_MEANS, dtype=torch.float64)[torch.arange(_BATCH) % 3]
    x_t = sde.perturb(means + 0.3 * noise.normal((2,)).double(), t, noise.normal((2,)).double())
    plain = GaussianMixtureScoreModel(sde, means=exact.means, covs=exact.covs(), weights=exact.log_weights.exp())
    ratio = (-0.5 * sde.log_snr(t)).exp().clamp(min=1)[:, None]

    def error(found: Prediction, true: Prediction) -> float:
        return max(float((found.eps - true.eps).abs().max()), float(((found.x0 - true.x0) / ratio).abs().max()))

    told = exact(x_t, t, cond=labels)
    by_class = ClassifierGuidedScoreModel(plain, exact)(x_t, t, cond=labels)
    weight_1 = GuidedScoreModel(exact, weight=1.0)(x_t, t, cond=labels)
    weight_0 = GuidedScoreModel(exact, weight=0.0)(x_t, t, cond=labels)
    return {
        "score + gradient of log p(c given x_t) = conditional score": Checked(error(by_class, told), ROUNDING),
        "guided by 1 = unguided, to the bit": Checked(error(weight_1, told), 0.0),
        "guided by 0 = told no class, to the bit": Checked(error(weight_0, exact(x_t, t)), 0.0),
        "CFG++ = DDIM guided by lambda r_t / (r_t - r_s)": Checked(_cfgpp_error(exact, noise), ROUNDING),
    }


def _cfgpp_error(model: LabelledMixtureScoreModel, noise: NoiseStreams) -> float:
    """The error of DDIM by the weights of ``CFGPlusPlusWeight`` against Algorithm 2 of Chung et al. 2024."""
    sampler, labels = make_sampler("ddim", num_steps=_STEPS, grid="karras"), torch.arange(_BATCH) % 2
    times = times_of(sampler, model.sde)
    x = x_T = model.sde.prior_std * noise.normal((2,)).double()
    guided = GuidedScoreModel(model, weight=CFGPlusPlusWeight(_LAMBDA, times))
    found = sampler.sample(guided, x_T, cond=labels).x0
    points = [point for point in points_of(model.sde, times) if point.sigma > 0]
    # samplers end by predicting x0, which is a step to alpha = 1 and sigma = 0
    onto = [*((point.alpha, point.sigma) for point in points[1:]), (1.0, 0.0)]
    for point, (alpha, sigma) in zip(points, onto, strict=True):
        x = alpha * _guided_x0(model, x, point.times_for(x), labels) + sigma * model(x, point.times_for(x)).eps
    return float((found - x).abs().max())


def _guided_x0(model: LabelledMixtureScoreModel, x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
    told, untold = model(x, t, cond=labels).x0, model(x, t).x0
    return untold + _LAMBDA * (told - untold)
