"""Images that a state x_t holds already: x0 as it is predicted on the way, and samples that share x_t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from samplers import GridSampler, Hook, StepState
from sde_lib import SDE, NoiseStreams, derive_seed, points_of

_NOISE, _SHARED = 3, 4  # derive the seeds of these draws from the run's


def noised(
    sde: SDE, x0: Float[Tensor, "batch *shape"], t: float, *, numbers: Sequence[int], seed: int = 0
) -> Float[Tensor, "batch *shape"]:
    """x_t = alpha x0 + sigma eps, where eps of image k comes from a stream of (seed, k), the same at any t.

    Args:
        sde: The SDE.
        x0: The images.
        t: The time, in [0, 1].
        numbers: The number k of each.
        seed: Seed of the run.

    Returns:
        x_t, [B, ...], in the dtype of ``x0``.
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
        times: The T times, at which there is noise.
        cond: Condition of each sample, or None.

    Returns:
        The predictions, [T, B, ...].

    Raises:
        ValueError: If there are not as many times as states.
    """
    found = []
    for x_t, t in zip(states, times, strict=True):
        at = torch.full((len(x_t),), t, dtype=torch.float64, device=x_t.device)
        found.append(model(x_t, at, cond=cond).x0)
    return torch.stack(found)


def prediction_times(
    sampler: GridSampler, sde: SDE, wanted: Sequence[float] = (), *, num_times: int = 10
) -> tuple[float, ...]:
    """Times at which a sampler has states with noise, falling.

    Args:
        sampler: The sampler.
        sde: The SDE of the model that is to be sampled.
        wanted: Times, for each of which the nearest of the grid is taken.
        num_times: Without any, how many, at least 2, are spread evenly over the steps of the grid, its first and its
            last with noise included.

    Returns:
        The times; fewer than ``num_times`` where the grid has fewer.

    Raises:
        ValueError: If a time lies beyond the grid.
    """
    noisy = [point.t for point in points_of(sde, sampler.times(sde)) if point.sigma > 0]
    if not wanted:
        spread = torch.linspace(0, len(noisy) - 1, min(num_times, len(noisy)), dtype=torch.float64)
        return tuple(noisy[int(k)] for k in spread.round())
    for t in wanted:
        if not noisy[-1] <= t <= noisy[0]:
            raise ValueError(
                f"{type(sampler).__name__} has states with noise at t in [{noisy[-1]:.6g}, {noisy[0]:.6g}], got "
                f"{t:.6g}; change t, or take more steps"
            )
    return tuple(sorted({min(noisy, key=lambda one: abs(one - t)) for t in wanted}, reverse=True))


@dataclass(frozen=True)
class ProgressiveSamples:
    """Samples, and what was predicted of them on the way.

    Attributes:
        x0: The samples, [B, ...].
        x0_hat: E[x0 | x_t] of their states x_t at some times, [T, B, ...].
        nfe: Network calls of the sampler; each prediction is one more.
    """

    x0: Float[Tensor, "batch *shape"]
    x0_hat: Float[Tensor, "times batch *shape"]
    nfe: int


def draw_progressively(
    model: ScoreModel,
    sampler: GridSampler,
    sample_shape: Sequence[int],
    times: Sequence[float],
    *,
    numbers: Sequence[int],
    cond: Cond | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
    hooks: Sequence[Hook] = (),
) -> ProgressiveSamples:
    """Draw samples, and predict them from their states on the way (Ho et al. 2020, Figs. 6 and 14).

    Sample k draws from a stream of (seed, k), and is that of ``--mode sample``. Of an exact sampler of the reverse SDE
    (x_t, x_0) is a pair of the forward process, so that |x0_hat - x_0|^2 is what x_t leaves open: of Gaussian data of
    variance c it is (1 - r) c, with the correlation r of ``shared_correlation``. The probability flow's x_0 follows
    from x_t, so that less is left: (1 - sqrt(r))^2 c, as x0_hat = sqrt(r) x_0. Either way x0_hat has variance r c.

    Args:
        model: The model.
        sampler: The sampler.
        sample_shape: Shape of one sample.
        times: Times of ``prediction_times``.
        numbers: The number k of each sample.
        cond: Condition of each sample, or None.
        seed: Seed of the run.
        device: Where the model is.
        hooks: See ``Sampler.sample``.

    Returns:
        The samples, and what was predicted of them at each time.

    Raises:
        KeyError: If the sampler has no state at a time.
        ValueError: If the grid does not fit the SDE.
        FloatingPointError: If the state stops being finite.
    """
    noise = NoiseStreams(seed, numbers)
    x_T = sampler.prior_sample(model.sde, sample_shape, noise, device=device)
    states = {float(sampler.times(model.sde)[0]): x_T}

    def keep(state: StepState) -> None:
        if state.s in times and state.sigma > 0:
            states[state.s] = state.x

    result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[*hooks, keep])
    x0_hat = predictions_along(model, torch.stack([states[t] for t in times]), times, cond=cond)
    return ProgressiveSamples(result.x0, x0_hat, result.nfe)


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

    Returns:
        The samples of each state.

    Raises:
        ValueError: If the sampler cannot start at t.
        FloatingPointError: If the state stops being finite.
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
        t: The time at which x_t is shared, in [0, 1].
        var: c, the variance of the data, above 0.

    Returns:
        The correlation, from 0 where x_t is noise to 1 where it is the image.
    """
    return float(_correlations(sde, t, torch.tensor(var, dtype=torch.float64)))


def _correlations(sde: SDE, t: float, variances: Tensor) -> Tensor:
    alpha, sigma = (float(one) for one in sde.alpha_sigma(torch.tensor(t, dtype=torch.float64)))
    return alpha**2 * variances / (alpha**2 * variances + sigma**2)


def gaussian_correlation(sde: SDE, t: float, *, variances: Float[Tensor, " dim"]) -> float:
    """The share of the variance of two samples of Gaussian data that they have in common, if they share x_t.

    sum_i c_i r_i / sum_i c_i over the eigenvalues c_i of the covariance, each with its ``shared_correlation`` r_i. The
    rest, sum_i c_i (1 - r_i), is the error of the best linear guess of x0 given x_t, whatever the data's law is, so
    that E[x0 | x_t] of a perfect model errs by no more.

    Args:
        sde: The SDE.
        t: The time, in [0, 1].
        variances: c_i, [D], not all 0.

    Returns:
        The share, from 0 to 1.
    """
    variances = variances.double()
    return float((variances * _correlations(sde, t, variances)).sum() / variances.sum())


def variances_of(x0: Float[Tensor, "images *shape"]) -> Float[Tensor, " dim"]:
    """The eigenvalues of the covariance of images, as many as are not 0 for their number's sake.

    Args:
        x0: N images of D numbers.

    Returns:
        The eigenvalues, rising, float64 [min(N, D)]; those of one image alone are 0.
    """
    centred = x0.double().flatten(1) - x0.double().flatten(1).mean(0)
    gram = centred.T @ centred if centred.shape[1] <= len(centred) else centred @ centred.T
    return torch.linalg.eigvalsh(gram).clamp(min=0) / max(len(centred) - 1, 1)


def common_variance(
    samples: Float[Tensor, "images k *shape"], mean: Float[Tensor, "*shape"]
) -> dict[str, Float[Tensor, " images"]]:
    """The parts of the correlation of K samples that share x_t, of each image, float64 [N].

    Args:
        samples: K samples of each state, at least 2.
        mean: The mean of the data.

    Returns:
        "common", the mean of (x_j - mean)(x_k - mean) over numbers and pairs j < k, and "total", that of
        (x_j - mean)^2: of an exact sampler the ratio of their means over images is the share of variance in common.
    """
    offset = (samples.double() - mean.double()).flatten(2)
    count, total = offset.shape[1], offset.square().mean((1, 2))
    # sum over all pairs, less that of each with itself
    all_pairs = offset.sum(1).square().mean(1)
    return {"common": (all_pairs - count * total) / (count * (count - 1)), "total": total}
