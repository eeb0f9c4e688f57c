"""Twisted sequential Monte Carlo: particles whose weights mend what guidance gets wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, Prediction, ScoreModel, count_network_calls
from models.wrappers.twist import Twist, TwistedModel
from runtime.options import whole_number
from sde_lib import NoiseStreams, Point, points_of

from .base import Hook, SampleResult, StepState, apply_hooks, check_finite
from .grid_sampler import GridSampler


@dataclass(frozen=True)
class TwistedResult(SampleResult):
    """Samples by particles.

    Attributes:
        log_evidence: An estimate of log p(y) of each sample, float64 [B]; its exponential is unbiased.
        effective: Effective number of the particles that the sample was drawn from, float64 [B].
    """

    log_evidence: Float[Tensor, " batch"] | None = None
    effective: Float[Tensor, " batch"] | None = None


class TwistedSampler(GridSampler):
    """Twisted diffusion sampling (Wu et al. 2023, Algorithm 1): K ancestral chains a sample, weighted and resampled.

    Each particle steps as the guided model says, by N(mean', var I) in place of the model's own N(mean, var I), and its
    weight is multiplied by

        N(x_s; mean, var) / N(x_s; mean', var)  times  p(y | x_s) / p(y | x_t),

    with the guided model's approximation of p(y | x_t), and p(y | x0) in the end. Where the weights' effective number
    falls below a share of K, particles are resampled. One particle of each sample is returned, drawn by weight: as K
    grows its law is p(x0 | y) of the chain, whatever the approximation is worth.

    All particles of a sample draw from its stream: image k is the same at any batch size. The memory is that of K
    samples each. NFE counts calls, of K particles each.

    Args:
        num_particles: K, at least 1.
        ess_threshold: Share of K below which particles are resampled, in [0, 1]; 1 is at every step.
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, *, num_particles: int = 16, ess_threshold: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_particles = whole_number("num_particles", num_particles, fix="16 is usual")
        if not 0 <= ess_threshold <= 1:
            raise ValueError(f"ess_threshold must lie in [0, 1], got {ess_threshold}; 0.5 is usual")
        if self.record_trajectory or self.denoise_final is False:
            raise ValueError(
                "particles keep no trajectory and end in x0; leave record_trajectory and denoise_final out"
            )
        self.ess_threshold = ess_threshold

    def step(self, denoise: Any, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """No step of a single state."""
        raise NotImplementedError("particles are moved together; call sample")

    def sample(
        self,
        model: ScoreModel,
        x_T: Tensor,
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> TwistedResult:
        """Sample; see ``Sampler.sample``. x_T is the first particle of each sample, the others are drawn.

        Hooks see the states of all particles, [B K, ...]; what they return is not used.

        Raises:
            ValueError: If the model has no likelihood.
        """
        if not hasattr(model, "twist"):
            raise ValueError(
                f"twisted sampling needs a model with a likelihood, got {type(model).__name__}; wrap it by "
                "PiGDMScoreModel or ClassifierGuidedScoreModel, outermost but for bounds of x0"
            )
        twisted, noise = cast(TwistedModel, model), NoiseStreams.fresh(len(x_T)) if noise is None else noise
        points = points_of(model.sde, self.times(model.sde))
        with torch.no_grad(), count_network_calls(model) as counter:
            cloud = _Cloud(twisted, x_T, cond, noise, self.num_particles, points[0])
            steps = list(pairwise(points))
            for index, (t, s) in enumerate(steps):
                cloud.resample(self.ess_threshold)
                if s.sigma > 0:
                    cloud.move(t, s)
                check_finite(cloud.x, f"step from t = {t.t:.6g} to {s.t:.6g}")
                state = StepState(index, len(steps), t.t, s.t, s.alpha, s.sigma, cloud.x, model.sde, noise)
                apply_hooks(hooks, state)
            cloud.finish()
            x0, effective = cloud.choose()
        return TwistedResult(
            x0=x0, nfe=counter.calls, trajectory=None, log_evidence=cloud.log_evidence, effective=effective
        )


class _Cloud:
    """K particles of each of B samples: states [B K, ...], the twist at them, and log weights [B, K]."""

    def __init__(
        self,
        model: TwistedModel,
        x_T: Tensor,
        cond: Cond | None,
        noise: NoiseStreams,
        num_particles: int,
        start: Point,
    ) -> None:
        self.model, self.noise, self.size = model, noise, num_particles
        owner = torch.arange(len(x_T), device=x_T.device).repeat_interleave(num_particles)
        self.cond = None if cond is None else cond[owner]
        shape = (num_particles, *x_T.shape[1:])
        drawn = model.sde.prior_sample(shape, noise, t=start.t, device=x_T.device).flatten(0, 1).to(x_T.dtype)
        is_first = torch.arange(len(owner), device=x_T.device) % num_particles == 0
        self.x = torch.where(is_first.view(-1, *[1] * (x_T.ndim - 1)), x_T[owner], drawn)
        self.at = self._twist(start)
        self.log_weights = self.at.log_likelihood.view(len(x_T), num_particles)
        self.log_evidence = torch.zeros(len(x_T), dtype=torch.float64, device=x_T.device)

    def _twist(self, point: Point) -> Twist:
        return self.model.twist(self.x, point.times_for(self.x), cond=self.cond)

    def move(self, t: Point, s: Point) -> None:
        """Step all particles from t to s by the guided answer, and weigh them."""
        one_minus_ratio = -math.expm1(t.log_snr - s.log_snr)
        std = s.sigma * math.sqrt(one_minus_ratio)
        on_x0, on_x = s.alpha * one_minus_ratio, t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
        # a generator a particle would cost more to make than it draws
        z = self.noise.normal((self.size, *self.x.shape[1:])).flatten(0, 1).to(self.x)
        # the guided mean less the model's, in standard deviations of the step
        shift = (on_x0 / std) * (self.at.guided.x0 - self.at.prior.x0)
        self.x = on_x * self.x + on_x0 * self.at.guided.x0 + std * z
        before, self.at = self.at.log_likelihood, self._twist(s)
        proposed = (shift.double() * (z.double() + 0.5 * shift.double())).flatten(1).sum(1)
        self._weigh(self.at.log_likelihood - before - proposed)

    def finish(self) -> None:
        """End in x0 as the model predicts it, and weigh by the likelihood of that."""
        self.x = self.at.prior.x0
        self._weigh(self.model.log_likelihood_of_data(self.x, cond=self.cond) - self.at.log_likelihood)
        self.log_evidence = self.log_evidence + self.log_weights.logsumexp(1) - math.log(self.size)

    def _weigh(self, log_factor: Float[Tensor, " particles"]) -> None:
        self.log_weights = self.log_weights + log_factor.view_as(self.log_weights)

    def resample(self, threshold: float) -> None:
        """Resample systematically the particles of samples whose effective number is below a share of K."""
        place = self.noise.uniform().to(self.log_weights)
        chosen = (effective_number(self.log_weights) < threshold * self.size) | (threshold == 1)
        if not bool(chosen.any()):
            return
        mean = self.log_weights.logsumexp(1) - math.log(self.size)
        self.log_evidence = self.log_evidence + torch.where(chosen, mean, 0.0)
        same = torch.arange(self.size, device=place.device).expand_as(self.log_weights)
        parents = torch.where(chosen[:, None], systematic(self.log_weights, place), same)
        self.log_weights = torch.where(chosen[:, None], 0.0, self.log_weights)
        first = torch.arange(len(parents), device=place.device)[:, None] * self.size
        self._keep((first + parents).flatten())

    def _keep(self, rows: Tensor) -> None:
        self.x = self.x[rows]
        prior, guided = (_rows(one, rows) for one in (self.at.prior, self.at.guided))
        self.at = Twist(prior, guided, self.at.log_likelihood[rows])

    def choose(self) -> tuple[Tensor, Float[Tensor, " batch"]]:
        """One particle of each sample, drawn by weight, and the effective number it is drawn from."""
        place = self.noise.uniform().to(self.log_weights)
        cdf = self.log_weights.softmax(1).cumsum(1)
        chosen = torch.searchsorted(cdf, place[:, None], right=True).squeeze(1).clamp(max=self.size - 1)
        rows = torch.arange(len(chosen), device=chosen.device) * self.size + chosen
        return self.x[rows], effective_number(self.log_weights)


def _rows(answer: Prediction, rows: Tensor) -> Prediction:
    fraction = answer.variance_fraction
    return Prediction(
        answer.x0[rows], answer.eps[rows], answer.sigma[rows], None if fraction is None else fraction[rows]
    )


def effective_number(log_weights: Float[Tensor, "batch particles"]) -> Float[Tensor, " batch"]:
    """(sum w)^2 / sum w^2 (Kong 1992)."""
    return (2 * log_weights.logsumexp(1) - (2 * log_weights).logsumexp(1)).exp()


def systematic(log_weights: Float[Tensor, "batch particles"], place: Float[Tensor, " batch"]) -> Tensor:
    """Parents of K particles by systematic resampling (Kitagawa 1996): those at (place + k) / K of the weights' CDF.

    Args:
        log_weights: [B, K].
        place: Uniform in [0, 1), [B].

    Returns:
        int64 [B, K].
    """
    size = log_weights.shape[1]
    points = (place[:, None] + torch.arange(size, device=place.device)) / size
    return torch.searchsorted(log_weights.softmax(1).cumsum(1), points, right=True).clamp(max=size - 1)
