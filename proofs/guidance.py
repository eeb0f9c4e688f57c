"""Guidance on Gaussians: the law that each sampler converges to, in closed form and without Monte-Carlo error."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from models import Cond, Condition, GuidedScoreModel, LinearGaussianScoreModel, Prediction, ScoreModel
from models.wrappers.guidance import Interval
from samplers import DDIMSampler, Sampler, make_sampler
from samplers.annealed_langevin import AnnealedLangevinSampler
from samplers.correctors import AnnealedLangevinCorrector, NoCorrector, alpha_of_table_step
from samplers.heun import HeunSampler
from samplers.predictor_corrector import PredictorCorrectorSampler
from samplers.predictors import NoPredictor, PredictorSampler
from sde_lib import SDE, NoiseStreams, make_grid, points_at_log_snr, points_of

from .checked import Cell, Checked, times_of
from .entries import Entry, entries
from .gaussian import ROUNDING, Moments
from .oracles import FRACTION
from .recursion import noisy_points

# eta^2, a number or a function of sigma / alpha
NoiseShare: TypeAlias = float | Callable[[float], float]
# of x given the condition, and of x
V_COND, V_NULL = 1.0, 2.0
WEIGHTS = (2.0, 4.0, 7.5)
# refinements before the first run of those whose errors change sign with fewer steps
_FINER = {"DPM-Solver++ 2S": 1, "Heun, churn 10": 4, "PC, ancestral + annealed_langevin": 1}
# x given c = (-0.3, 0.8) is N(W c + b, C)
_W = torch.tensor([[0.6, -0.2], [0.1, 0.5]], dtype=torch.float64)
_B = torch.tensor([0.7, -0.4], dtype=torch.float64)
_C = torch.tensor([[0.30, 0.12], [0.12, 0.20]], dtype=torch.float64)
_TOLD = torch.tensor([-0.3, 0.8], dtype=torch.float64)


class _Oracle(LinearGaussianScoreModel):
    """Answers as a network that learns its variance does."""

    def forward(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Prediction:
        return replace(super().forward(x_t, t, cond=cond), variance_fraction=torch.full_like(x_t, FRACTION))


def line(sde: SDE, *, v_cond: float = V_COND, v_null: float = V_NULL) -> LinearGaussianScoreModel:
    """x = c + n ~ N(0, v_null), which is N(0, v_cond) for a model that is told c = 0."""
    one = torch.ones(1, 1, dtype=torch.float64)
    return _Oracle(sde, weight=one, bias=torch.zeros(1), cov=v_cond * one, cond_cov=(v_null - v_cond) * one)


def plane(sde: SDE) -> LinearGaussianScoreModel:
    """A Gaussian in the plane whose mean a condition of two numbers moves."""
    return _Oracle(sde, weight=_W, bias=_B, cov=_C)


def told_and_law() -> tuple[Tensor, Moments]:
    """The condition that ``plane`` is told, and mean and covariance of x then."""
    return _TOLD, (_W @ _TOLD + _B, _C)


class _Impulses(NoiseStreams):
    """Noise that is 0, but for the k-th draw, which is a unit vector in each of D rows of the batch after the first."""

    def __init__(self) -> None:
        super().__init__(0, [0])
        self.draws = 0

    def normal_like(self, x: Tensor) -> Tensor:
        """The next draw."""
        noise, size = torch.zeros_like(x), x.shape[1]
        first = 1 + size * (1 + self.draws)
        noise[first : first + size] = torch.eye(size, dtype=x.dtype)[: max(len(x) - first, 0)]
        self.draws += 1
        return noise


def exact_law(sampler: Sampler, model: ScoreModel, told: Tensor, start: Moments) -> tuple[Moments, int]:
    """Mean and covariance of x0 = A x_T + b + sum_k C_k z_k, which is what a linear sampler makes of x_T and its noise.

    One batch finds all: a row gives b, and each column of A and of the C_k has a row of its own.

    Args:
        sampler: The sampler.
        model: A model whose answer is linear in x_t, [B, D].
        told: The values of its condition, [K].
        start: Mean and covariance of x_T.

    Returns:
        The moments, and the network calls of a run.
    """

    def run(rows: int, noise: _Impulses) -> tuple[Tensor, int]:
        x_T = torch.zeros(rows, len(start[0]), dtype=torch.float64)
        x_T[1 : 1 + len(start[0])] = torch.eye(len(start[0]), dtype=torch.float64)[: rows - 1]
        result = sampler.sample(model, x_T, cond=Condition(values=told.expand(rows, -1)), noise=noise)
        return result.x0, result.nfe

    counter, size = _Impulses(), len(start[0])
    run(1, counter)
    x0, nfe = run(1 + size * (1 + counter.draws), _Impulses())
    b, effects = x0[0], (x0[1:] - x0[0]).mT
    gain, on_noise = effects[:, :size], effects[:, size:]
    return (gain @ start[0] + b, gain @ start[1] @ gain.mT + on_noise @ on_noise.mT), nfe


def noise_share(sampler: Sampler, sde: SDE) -> NoiseShare | None:
    """eta^2: the share of the reverse SDE's noise that a sampler draws in the limit of small steps, over sigma / alpha.

    0 is the probability flow and 1 the reverse SDE; None of Langevin steps alone, which lead to neither. N steps along
    L = log r_first - log r_last add to it: churn S by S / L, and a Langevin step 2 alpha_i (snr sigma)^2 after each of
    them by 2 alpha_i snr^2 N / L, which keeps its size where twice the steps are of half the length.
    """
    if isinstance(sampler, AnnealedLangevinSampler):
        return None
    if isinstance(sampler, HeunSampler):
        return sampler.churn / _length(sampler, sde)
    if isinstance(sampler, PredictorCorrectorSampler) and not isinstance(sampler.corrector, NoCorrector):
        if isinstance(sampler.predictor, NoPredictor):
            return None
        if not isinstance(sampler.corrector, AnnealedLangevinCorrector):
            raise ValueError(f"no limit is known of {sampler.corrector}, whose steps norms set; take annealed_langevin")
        steps = sampler.corrector_steps * (len(noisy_points(sde, times_of(sampler, sde))) - 1)
        added = 2 * sampler.corrector.snr**2 * steps / _length(sampler, sde)

        def share(r: float) -> float:
            (point,) = points_at_log_snr(sde, [-2 * math.log(r)])
            return 1 + added * alpha_of_table_step(point)

        return share
    if isinstance(sampler, DDIMSampler):
        return sampler.eta**2
    drawn = isinstance(sampler, (PredictorSampler, PredictorCorrectorSampler)) or getattr(sampler, "stochastic", False)
    return float(drawn)


def _length(sampler: Sampler, sde: SDE) -> float:
    points = noisy_points(sde, times_of(sampler, sde))
    return math.log(points[0].noise_ratio / points[-1].noise_ratio)


def guided_var(
    v_cond: float, v_null: float, weight: float, *, start: tuple[float, float], r: float, noise: NoiseShare = 0.0
) -> float:
    """The variance of y = x / alpha at r = sigma / alpha that a guided walk from ``start`` down leads to.

    The guided score is that of precision w / (v_cond + r^2) + (1 - w) / (v_null + r^2), so that

        d Var / dr = 2 (1 + eta^2) r (that precision) Var - 2 eta^2 r,

    which is integrated here. For a constant eta^2 the solution is, with
    Phi(r) = [(v_cond + r^2)^w (v_null + r^2)^(1 - w)]^(1 + eta^2),

        Var(r) = Phi(r) (Var(R) / Phi(R) + integral_r^R 2 eta^2 u / Phi(u) du).

    From R = infinity to r = 0 that is v_cond^w v_null^(1 - w) at eta = 0: 2^(1 - w) for variances 1 and 2, and
    (2 - 2^(2 - 2w)) / (2w - 1) at eta = 1.

    Args:
        v_cond: Variance of the data with the condition.
        v_null: That without it, or of the reference.
        weight: w.
        start: R and Var(R).
        r: Where the walk ends.
        noise: eta^2, a number or a function of r; see ``noise_share``.
    """

    def slope(log_u: float, var: np.ndarray) -> np.ndarray:
        u = math.exp(log_u)
        precision = weight / (v_cond + u**2) + (1 - weight) / (v_null + u**2)
        share = noise(u) if callable(noise) else noise
        return 2 * u**2 * ((1 + share) * precision * var - share)

    top, var = start
    found = solve_ivp(slope, (math.log(top), math.log(r)), [var], method="DOP853", rtol=1e-12, atol=1e-14)
    return float(found.y[0, -1])


def _target(sampler: Sampler, sde: SDE, weight: float) -> float:
    """The variance that a sampler of infinitely many steps leads to from the prior, after its prediction of x0."""
    points = noisy_points(sde, times_of(sampler, sde))
    top, r = points[0].noise_ratio, points[-1].noise_ratio
    start, noise = (top, (sde.prior_std_at(points[0].t) / points[0].alpha) ** 2), noise_share(sampler, sde)
    if noise is None:
        # Langevin steps lead to the law of the guided score itself
        var = 1 / (weight / (V_COND + r**2) + (1 - weight) / (V_NULL + r**2))
    else:
        var = guided_var(V_COND, V_NULL, weight, start=start, r=r, noise=noise)
    return var * (weight * V_COND / (V_COND + r**2) + (1 - weight) * V_NULL / (V_NULL + r**2)) ** 2


def linear_entries() -> list[Entry]:
    """The samplers that are linear in x_T and noise: all but those with correctors whose steps norms set."""
    return [entry for entry in entries() if not entry.by_norms]


def prove_guidance(sde: SDE, entry: Entry, weights: Sequence[float] = WEIGHTS) -> dict[float, tuple[Cell, float]]:
    """Classifier-free guidance of N(0, 1) against N(0, 2) by one sampler, from the prior.

    Args:
        sde: The SDE.
        entry: One of ``linear_entries()``.
        weights: Guidance weights.

    Returns:
        For each weight a cell with the error of the variance, and the variance.
    """
    found = {}
    for weight in weights:
        model, values, nfe = GuidedScoreModel(line(sde), weight=weight), [], 0
        finer = _FINER.get(entry.label, 0)
        for refinement in (finer, finer + 1):
            sampler = entry.build(sde, refinement)
            (first,) = points_of(sde, times_of(sampler, sde)[:1])
            start = torch.full((1, 1), sde.prior_std_at(first.t) ** 2, dtype=torch.float64)
            (_, cov), nfe = exact_law(sampler, model, torch.zeros(1), (torch.zeros(1, dtype=torch.float64), start))
            values.append(float(cov))
        change = abs(values[1] - values[0])
        error = values[1] - _target(sampler, sde, weight)
        found[weight] = Cell(nfe, {"var": Checked(error, entry.allowance(sde) * change + ROUNDING)}), values[1]
    return found


def prove_forms(sde: SDE) -> dict[str, tuple[Checked, float, float]]:
    """An interval, autoguidance and other variances by DPM-Solver++ 2S, from the prior to the flow's limit.

    Returns:
        For each form the error and its bound, the variance, and that of the closed form.
    """
    interval, weight = (0.2, 2.0), 4.0
    wide, narrow = line(sde, v_cond=1.5, v_null=2.0), line(sde, v_cond=0.5, v_null=3.0)
    forms = {
        f"guided by {weight:g} in {interval}": (
            GuidedScoreModel(line(sde), weight=weight, interval=interval), V_COND, V_NULL, weight, interval,
        ),
        "autoguidance by 2.5 away from variance 1.5": (
            GuidedScoreModel(line(sde), weight=2.5, reference=wide), V_COND, 1.5, 2.5, None,
        ),
        "variances 0.5 and 3, guided by 3": (GuidedScoreModel(narrow, weight=3.0), 0.5, 3.0, 3.0, None),
    }  # fmt: skip
    return {name: _prove_form(sde, *form) for name, form in forms.items()}


def _prove_form(
    sde: SDE, model: GuidedScoreModel, v_cond: float, v_null: float, weight: float, interval: Interval | None
) -> tuple[Checked, float, float]:
    first, last = (noisy_points(sde, make_grid("log_snr", sde, 3))[k] for k in (0, -1))
    edges = [first.noise_ratio, *(sorted(interval, reverse=True) if interval else []), last.noise_ratio]
    values = []
    for steps in (50, 100):
        # with the edges on the grid; rounding must not put one on the wrong side
        parts = [np.geomspace(*pair, steps, endpoint=False) * (1 - 1e-12) for pair in pairwise(edges)]
        times = sde.time_from_log_snr(-2 * torch.from_numpy(np.concatenate([*parts, edges[-1:]])).log())
        times[0], times[-1] = first.t, last.t
        sampler = make_sampler("dpm_solver_pp", variant="2S", grid=times, denoise_final=True)
        start = torch.full((1, 1), sde.prior_std_at(first.t) ** 2, dtype=torch.float64)
        (_, cov), _ = exact_law(sampler, model, torch.zeros(1), (torch.zeros(1, dtype=torch.float64), start))
        values.append(float(cov))
    var, w, r = (sde.prior_std_at(first.t) / first.alpha) ** 2, weight, last.noise_ratio
    for top, r in pairwise(edges):
        w = weight if interval is None or interval[0] < math.sqrt(top * r) <= interval[1] else 1.0
        var = guided_var(v_cond, v_null, w, start=(top, var), r=r)
    gain = w * v_cond / (v_cond + r**2) + (1 - w) * v_null / (v_null + r**2)
    # of order 2
    bound = 0.5 * abs(values[1] - values[0]) + ROUNDING
    return Checked(values[1] - var * gain**2, bound), values[1], var * gain**2


def prove_condition(sde: SDE, entry: Entry) -> Cell:
    """x | c ~ N(W c + b, C) of a model that is told c, by one sampler, from the exact p(x_T | c).

    Args:
        sde: The SDE.
        entry: A sampler that is linear in x_T and noise: one whose steps do not depend on norms.

    Returns:
        A cell with the norms of the errors of mean and covariance.
    """
    (told, (mean, cov)), model, outputs, nfe = told_and_law(), plane(sde), [], 0
    for refinement in (0, 1):
        sampler = entry.build(sde, refinement)
        times = times_of(sampler, sde)
        first, last = points_of(sde, times[:1])[0], noisy_points(sde, times)[-1]
        identity = torch.eye(2, dtype=torch.float64)
        start = first.alpha * mean, first.alpha**2 * cov + first.sigma**2 * identity
        output, nfe = exact_law(sampler, model, told, start)
        outputs.append(output)
    # samplers end by predicting x0 at the last time with noise
    truth = mean, last.alpha**2 * cov @ torch.linalg.solve(last.alpha**2 * cov + last.sigma**2 * identity, cov)
    return Cell(nfe, {
        name: Checked(float((b - true).norm()), entry.allowance(sde) * float((b - a).norm()) + ROUNDING)
        for name, a, b, true in zip(("mean", "cov"), *outputs, truth, strict=True)
    })  # fmt: skip
