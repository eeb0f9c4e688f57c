"""Images that a state x_t holds already: x0 as it is predicted, and samples that share x_t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from samplers import GridSampler, Hook
from sde_lib import SDE, NoiseStreams, derive_seed

_NOISE, _SHARED = 3, 4  # derive the seeds of these draws from the run's


def noised(
    sde: SDE, x0: Float[Tensor, "batch *shape"], t: float, *, numbers: Sequence[int], seed: int = 0
) -> Float[Tensor, "batch *shape"]:
    """x_t = alpha x0 + sigma eps, where eps of image k comes from a stream of (seed, k), the same at any t.

    Args:
        sde: The SDE.
        x0: The images.
        t: The time.
        numbers: The number k of each.
        seed: Seed of the run.
    """
    eps = NoiseStreams(derive_seed(seed, _NOISE), numbers).normal_like(x0)
    return sde.perturb(x0, torch.full((len(x0),), t, dtype=torch.float64, device=x0.device), eps)


@torch.no_grad()
def predictions_along(
    model: ScoreModel,
    states: Float[Tensor, "times batch *shape"],
    times: Sequence[float],
    *,
    cond: Cond | None = None,
) -> Float[Tensor, "times batch *shape"]:
    """E[x0 | x_t] of states at some times, one network call each.

    Args:
        model: The model.
        states: x_t at each time, [T, B, ...].
        times: The times, with noise.
        cond: Condition of each sample, or None.
    """
    found = []
    for x_t, t in zip(states, times, strict=True):
        at = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
        found.append(model(x_t, at, cond=cond).x0)
    return torch.stack(found)


@dataclass(frozen=True)
class PosteriorDraws:
    """Samples that share their states x_t.

    Attributes:
        x0: N samples of each state, [B, N, ...].
        nfe: Network calls.
    """

    x0: Float[Tensor, "batch samples *shape"]
    nfe: int


def draw_shared(
    model: ScoreModel,
    sampler: GridSampler,
    x_t: Float[Tensor, "batch *shape"],
    t: float,
    *,
    num_samples: int,
    numbers: Sequence[int],
    cond: Cond | None = None,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
) -> PosteriorDraws:
    """Draw samples of p(x0 | x_t): N from each state, with noise of their own below t (Ho et al. 2020, Fig. 7).

    Sample j of state k draws from a stream of (seed, k, j).

    Args:
        model: The model.
        sampler: The sampler, started at t; without noise, as "ddim" with eta = 0, all N are one.
        x_t: The states.
        t: Their time.
        num_samples: N.
        numbers: The number k of each state.
        cond: Condition of each state, or None.
        seed: Seed of the run.
        hooks: See ``Sampler.sample``.

    Raises:
        ValueError: If the sampler cannot start at t.
    """
    rows = torch.arange(len(x_t), device=x_t.device).repeat_interleave(num_samples)
    streams = [derive_seed(k, j) for k in numbers for j in range(num_samples)]
    noise = NoiseStreams(derive_seed(seed, _SHARED), streams)
    started = sampler.starting_at(model.sde, t)
    cond = None if cond is None else cond[rows]
    result = started.sample(model, x_t[rows], cond=cond, noise=noise, hooks=hooks)
    return PosteriorDraws(result.x0.unflatten(0, (len(x_t), num_samples)), result.nfe)


def shared_correlation(sde: SDE, t: float, *, var: float) -> float:
    """Correlation of two samples of Gaussian data of a variance that share x_t: alpha^2 c / (alpha^2 c + sigma^2).

    The rest of the variance, c sigma^2 / (alpha^2 c + sigma^2), is E|x0_hat - x0|^2, the error of a number of the
    prediction.

    Args:
        sde: The SDE.
        t: The time at which x_t is shared.
        var: c, the variance of the data.
    """
    alpha, sigma = (float(one) for one in sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    return alpha**2 * var / (alpha**2 * var + sigma**2)
