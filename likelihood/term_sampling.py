"""Sampling a bound's terms, with weights that keep their sum unbiased."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from models import Cond, ScoreModel
from runtime.options import whole_number
from runtime.registry import choices_message
from sde_lib import NoiseStreams, derive_seed

from .base import LikelihoodEstimator
from .batch_checks import check_batch
from .decoder import levels_of

StepSampling = Literal["stratified", "uniform", "low_discrepancy", "importance"]

UNIFORM_SHARE = 0.1
# of the draws of a classification; the others fall where classes differ
_SHARE_OF_VALUES = 0.25
_GOLDEN = 0.6180339887498949


def check_step_weights(step_weights: Tensor) -> Float[Tensor, " steps"]:
    """Magnitudes of the terms as float64 on the CPU.

    Raises:
        ValueError: If they are not a vector of finite numbers, none below 0 and some above.
    """
    weights = torch.as_tensor(step_weights).detach().cpu().double()
    if weights.ndim != 1 or not bool((torch.isfinite(weights) & (weights >= 0)).all()) or not float(weights.sum()) > 0:
        raise ValueError(
            f"step_weights must be a vector of finite numbers, none below 0 and some above, got shape "
            f"{list(weights.shape)}; take them from fit_steps"
        )
    return weights


@dataclass(frozen=True)
class StepDraws:
    """K draws an image from n cells of equal size: the steps of a chain, or parts of a range of log-SNR.

    Attributes:
        index: Cell of each draw, [B, K].
        place: Where in its cell, uniform in [0, 1), float64 [B, K].
        scale: 1 / (K p(cell)), float64 [B, K]: sum_k scale_k f(cell_k) has the mean sum over cells of f.
    """

    index: Int[Tensor, "batch draws"]
    place: Float[Tensor, "batch draws"]
    scale: Float[Tensor, "batch draws"]


def low_discrepancy_place(index: int) -> float:
    """frac(k times the golden ratio): where image k of a run stands in a sequence that fills [0, 1) evenly."""
    return (index % 2**52) * _GOLDEN % 1.0


def draw_points(scheme: StepSampling, noise: NoiseStreams, num_points: int) -> Float[Tensor, "batch points"]:
    """Points of [0, 1), each image's its own affair: no image's depend on its batch mates.

    Args:
        scheme: "uniform": K independent points from the image's stream. "stratified": one in each of K equal parts,
            independent and uniform there, from the image's stream. "low_discrepancy" and "importance": one in each of K
            equal parts, in part j at frac(shift_j + k times the golden ratio) for image k of the run (Kingma et al.
            2021, Appendix I.1, spread such points over a batch), with shifts that come from the run's seed.
        noise: The streams.
        num_points: K.

    Returns:
        float64 [B, K]. A point taken at random of an image's K is uniform, in every scheme.
    """
    if scheme in ("low_discrepancy", "importance"):
        # a shift for each part: with one for all, the errors of an image's parts would add up instead of averaging out
        shifts = [derive_seed(noise.seed, 0x6C616D62, part) / 2**63 for part in range(num_points)]
        sequence = torch.tensor([low_discrepancy_place(k) for k in noise.indices], dtype=torch.float64)
        inside = (sequence[:, None] + torch.tensor(shifts, dtype=torch.float64)) % 1.0
    else:
        inside = noise.uniform((num_points,)).double()
    if scheme == "uniform":
        return inside
    return (inside + torch.arange(num_points, dtype=torch.float64)) / num_points


def draw_steps(
    scheme: StepSampling, noise: NoiseStreams, *, num_steps: int, num_draws: int, step_weights: Tensor | None
) -> StepDraws:
    """Choose which of n steps to evaluate, with probabilities p and by ``draw_points`` through their inverse CDF.

    p_i = 1 / n, or for "importance" (1 - a) w_i / sum w + a / n with a = ``UNIFORM_SHARE``, which bounds p_i from below
    and so the estimate's variance, however wrong the weights are (Hesterberg 1995). Of independent draws those with
    w_i = sqrt(E[L_i^2]) have the least variance (Nichol & Dhariwal 2021, Section 3.3). The weights are constants here,
    not a running history of the terms being measured: nothing is biased by them, and no image depends on another.

    Args:
        scheme: See ``draw_points``.
        noise: The streams.
        num_steps: n.
        num_draws: K.
        step_weights: Magnitudes w of the terms, [n], for "importance".

    Raises:
        ValueError: If "importance" has no weights, or not n of them.
    """
    probs = torch.full((num_steps,), 1 / num_steps, dtype=torch.float64)
    if scheme == "importance":
        if step_weights is None:
            raise ValueError(
                "step_sampling 'importance' needs step_weights; call fit_steps on images that are not measured"
            )
        if len(step_weights) != num_steps:
            raise ValueError(
                f"step_weights must have {num_steps} entries, got {len(step_weights)}; fit them on this grid"
            )
        probs = (1 - UNIFORM_SHARE) * step_weights / step_weights.sum() + UNIFORM_SHARE * probs
    points = draw_points(scheme, noise, num_draws)
    cdf = probs.cumsum(0)
    index = torch.searchsorted(cdf, points, right=True).clamp(max=num_steps - 1)
    place = ((points - (cdf - probs)[index]) / probs[index]).clamp(0, 1 - 2.0**-50)
    return StepDraws(index=index, place=place, scale=1 / (num_draws * probs[index]))


def pilot_steps(num_steps: int, num_knots: int) -> Int[Tensor, " knots"]:
    """At most ``num_knots`` of n steps to fit weights on, both ends among them.

    Half are evenly spaced, half geometrically, since the terms change fastest near the data.
    """
    half = max(num_knots // 2, 2)
    even = torch.linspace(0, num_steps - 1, half, dtype=torch.float64)
    geometric = torch.logspace(0, 1, num_knots - half, base=float(num_steps), dtype=torch.float64) - 1
    return torch.cat([even, geometric]).round().long().clamp(0, num_steps - 1).unique()


def interpolate_step_weights(
    knots: Int[Tensor, " knots"], nats: Float[Tensor, "images knots"], num_steps: int
) -> Float[Tensor, " steps"]:
    """sqrt(E[L_i^2]) of every step from pilot values at a few of them.

    The logarithm of the root mean square over the pilot images is interpolated linearly in log(i + 1). A few images
    suffice, as neighbouring steps have nearly equal terms.

    Args:
        knots: Steps that were evaluated, rising, [M].
        nats: L_i of each pilot image, [P, M].
        num_steps: n.

    Returns:
        float64 [n] on the CPU.
    """
    magnitude = nats.double().cpu().square().mean(0).sqrt().numpy()
    # a term that is 0 in the pilot has no logarithm; the uniform share looks after it
    log_magnitude = np.log(np.maximum(magnitude, max(1e-12 * magnitude.max(), 1e-300)))
    at = np.log1p(knots.cpu().double().numpy())
    return torch.from_numpy(np.exp(np.interp(np.log1p(np.arange(num_steps)), at, log_magnitude)))


def sampling_variance(shares: Float[Tensor, "batch draws"], *, independent: bool) -> Float[Tensor, " batch"] | None:
    """Variance of sum_k shares_k over the draws of steps and of noise, for each image on its own.

    Independent draws ("uniform") have the unbiased K s^2. With one draw a part (all else) no unbiased estimate exists.
    Pairs of neighbouring parts, and the last three where K is odd, are taken as if their draws were of one part
    (Cochran 1977, Section 5A.12). The mean of that is the variance and what the parts' means differ by, squared: too
    large, never too small, and by little where neighbouring parts have nearly equal means, as in importance sampling.

    Args:
        shares: What each draw adds to the sum, in the order of the parts, float64 [B, K].
        independent: Whether the draws are independent and of one distribution.

    Returns:
        float64 [B], or None for K = 1, which says nothing of it.
    """
    num_draws = shares.shape[1]
    if num_draws < 2:
        return None
    if independent:
        return num_draws * shares.var(1)
    paired = num_draws if num_draws % 2 == 0 else num_draws - 3
    pairs = shares[:, :paired].unflatten(1, (paired // 2, 2))
    variance = (pairs[..., 0] - pairs[..., 1]).square().sum(1)
    return variance if paired == num_draws else variance + 3 * shares[:, paired:].var(1)


class SampledBound(LikelihoodEstimator):
    """A bound of which each image has ``steps_per_image`` terms evaluated, drawn by ``draw_steps``.

    Args:
        num_levels: Number of grey levels of the data; None of those with a density.
        steps_per_image: K, at least 1; None evaluates every term.
        step_sampling: "stratified", "uniform", "low_discrepancy" or "importance".
        step_weights: For "importance"; None has them fitted by ``fit_steps`` before the first use.

    Raises:
        ValueError: If a number is out of range, the name unknown, or weights are given to another scheme.
    """

    def __init__(
        self,
        num_levels: int | None,
        steps_per_image: int | None,
        step_sampling: StepSampling,
        step_weights: Tensor | None,
    ) -> None:
        if num_levels is not None:
            levels_of(torch.zeros(0), num_levels)
        if step_sampling not in get_args(StepSampling):
            raise ValueError(choices_message("step sampling", step_sampling, sorted(get_args(StepSampling))))
        if step_weights is not None and step_sampling != "importance":
            raise ValueError(
                f"step_weights are for step_sampling = 'importance', got {step_sampling!r}; leave one of them out"
            )
        self.num_levels, self.steps_per_image = num_levels, steps_per_image
        self.step_sampling: StepSampling = step_sampling
        self.step_weights = None if step_weights is None else check_step_weights(step_weights)

    def fit_steps(
        self,
        model: ScoreModel,
        x0: Float[Tensor, "batch *shape"],
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        num_knots: int = 24,
        num_classes: int = 0,
    ) -> Float[Tensor, " steps"]:
        """Set ``step_weights`` to the root mean square of the terms, as a few pilot images have it.

        For classification by likelihood, three quarters of the draws are to fall where classes differ: the weights are
        then a sum of two, each divided by its own sum, a quarter of that of the terms of all classes,
        sqrt(E[L_i(c)^2]), and the rest that of their differences, sqrt(E[(L_i(c) - mean_c L_i(c))^2]).

        Each is evaluated at ``num_knots`` terms; 16 images are enough. They must be others than those to be measured,
        such as the training split's: whatever the weights, the estimate is unbiased so long as they do not depend on
        the images that it is made of.

        Args:
            model: The model.
            x0: Pilot images, [P, ...].
            cond: Their condition.
            noise: One random stream a pilot image.
            num_knots: Terms to evaluate, so many network calls; at least 2.
            num_classes: Classes to tell apart; 0 for the terms given ``cond`` alone.

        Returns:
            The weights, float64 [n], one a step or cell.

        Raises:
            ValueError: If ``step_sampling`` is another than "importance".
        """
        if self.step_sampling != "importance":
            raise ValueError(f"fit_steps is for step_sampling = 'importance', got {self.step_sampling!r}; leave it out")
        whole_number("num_knots", num_knots, least=2, fix="24 is usual")
        noise = check_batch(x0, cond, noise)
        with torch.no_grad():
            if num_classes:
                self.step_weights = self._weights_of_classes(model, x0, noise, num_knots, num_classes)
            else:
                terms = self._pilot_terms(model, x0, cond, noise, num_knots)
                self.step_weights = self._magnitudes(model, terms, num_knots)
        return self.step_weights

    def _weights_of_classes(
        self, model: ScoreModel, x0: Tensor, noise: NoiseStreams, num_knots: int, num_classes: int
    ) -> Tensor:
        each = []
        for c in range(num_classes):
            cond = torch.full((len(x0),), c, dtype=torch.int64, device=x0.device)
            # the same noise for each class
            each.append(self._pilot_terms(model, x0, cond, NoiseStreams(noise.seed, noise.indices), num_knots))
        terms = torch.stack(each)
        both = [self._magnitudes(model, one.flatten(0, 1), num_knots) for one in (terms, terms - terms.mean(0))]
        return _SHARE_OF_VALUES * both[0] / both[0].sum() + (1 - _SHARE_OF_VALUES) * both[1] / both[1].sum()

    @abstractmethod
    def _pilot_terms(
        self, model: ScoreModel, x0: Tensor, cond: Cond | None, noise: NoiseStreams, num_knots: int
    ) -> Tensor:
        """At most ``num_knots`` terms of each pilot image, [P, M]."""

    @abstractmethod
    def _magnitudes(self, model: ScoreModel, terms: Tensor, num_knots: int) -> Tensor:
        """The root mean square of every term, [n], from some of them, [P, M]."""

    def _draw(self, noise: NoiseStreams, num_steps: int) -> StepDraws:
        draws = self.steps_per_image or num_steps
        weights = self.step_weights
        return draw_steps(self.step_sampling, noise, num_steps=num_steps, num_draws=draws, step_weights=weights)

    def _variance_of_sum(self, shares: Tensor) -> Tensor | None:
        return sampling_variance(shares, independent=self.step_sampling == "uniform")
