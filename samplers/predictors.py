"""Predictors: one step of a reverse-time SDE from t to s < t (Song et al. 2021, Appendix E and G)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

from jaxtyping import Float
from torch import Tensor

from models import ReverseVariance, check_variance, pick_variance, reverse_log_var
from runtime.registry import Registry
from sde_lib import NoiseStreams, Point, combine

from .denoiser import Denoiser
from .grid_sampler import GridSampler
from .registry import register_sampler


class Predictor(ABC):
    """Moves the state from one noise level to the next; stateless, the model is an argument."""

    @abstractmethod
    def step(
        self, denoise: Denoiser, x: Float[Tensor, "batch *shape"], t: Point, s: Point, noise: NoiseStreams
    ) -> Float[Tensor, "batch *shape"]:
        """One step; see ``GridSampler.step``."""


PREDICTORS: Registry[Predictor] = Registry("predictor")
register_predictor, available_predictors, make_predictor = PREDICTORS.register, PREDICTORS.names, PREDICTORS.make


@register_predictor("ancestral")
class AncestralPredictor(Predictor):
    """x_s = mean of q(x_s | x_t, x0 = prediction) + sqrt(var) z (Ho et al. 2020, Alg. 2; Song et al. 2021, App. F).

    Args:
        variance: "small": that of q(x_s | x_t, x0); "large": that of q(x_t | x_s) (Ho et al. 2020, Section 3.2);
            "learned": between the two as the model says (Nichol & Dhariwal 2021, Eq. 15); or "auto": the learned one of
            a model that has it, else the small one, as ``VariationalBound`` measures.

    Raises:
        ValueError: If the variance is unknown, or "learned" of a model that does not learn it.
    """

    def __init__(self, *, variance: ReverseVariance = "auto") -> None:
        self.variance: ReverseVariance = check_variance(variance)

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Draw x_s; the mean is Ho et al.'s Eq. 7."""
        prediction = denoise(x, t)
        one_minus_ratio = -math.expm1(t.log_snr - s.log_snr)
        # exp(lambda_t - lambda_s) alpha_s / alpha_t, finite where alpha_t is 0
        on_x = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
        mean = [(s.alpha * one_minus_ratio, prediction.x0), (on_x, x)]
        z = noise.normal_like(x)
        variance = pick_variance(self.variance, learned=prediction.variance_fraction is not None)
        if variance == "learned":
            log_var = reverse_log_var(variance, prediction, denoise.sde, s.times_for(x), t.times_for(x))
            return combine(*mean, (1.0, (0.5 * log_var).exp().to(x.dtype) * z))
        sigma = s.sigma if variance == "small" else t.sigma
        return combine(*mean, (sigma * math.sqrt(one_minus_ratio), z))


@register_predictor("reverse_diffusion")
class ReverseDiffusionPredictor(Predictor):
    """The reverse of the forward step x_t = a x_s + sqrt(v) z, discretized in the same way:

        x_s = (2 - a) x_t + v score + sqrt(v) z,   a = alpha_t / alpha_s,   v = sigma_t^2 - a^2 sigma_s^2

    (Song et al. 2021, Appendix E, Eq. 46). On DDPM's table, v = beta and a = sqrt(1 - beta); on a VE table,
    v = sigma_t^2 - sigma_s^2 and a = 1. For sub-VP, whose forward step they discretize by Euler's method, this is the
    exact forward step too.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Eq. 46, with score = -eps / sigma."""
        eps = denoise(x, t).eps
        var = -(t.sigma**2) * math.expm1(t.log_snr - s.log_snr)
        return combine((2 - t.alpha / s.alpha, x), (-var / t.sigma, eps), (math.sqrt(var), noise.normal_like(x)))


@register_predictor("euler_maruyama")
class EulerMaruyamaPredictor(Predictor):
    """x_s = x_t + (f x_t - g^2 score) (s - t) + g sqrt(t - s) z: Euler-Maruyama on the reverse-time SDE

    (Song et al. 2021, Eq. 6). Of weak order 1. Where g^2 (t - s) passes 2 the step overshoots, as it does near t = 1 of
    the cosine schedule unless the steps are small; the other predictors take the exact forward step instead.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Eq. 6, with score = -eps / sigma."""
        t.check_signal()
        eps, z = denoise(x, t).eps, noise.normal_like(x)
        f, g_sq, dt = t.drift_coeff, t.diffusion_sq, s.t - t.t
        return combine((1 + f * dt, x), (g_sq / t.sigma * dt, eps), (math.sqrt(-g_sq * dt), z))


@register_predictor("none")
class NoPredictor(Predictor):
    """x_s = x_t: all work is left to the corrector."""

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """Nothing."""
        return x


class PredictorSampler(GridSampler):
    """A predictor alone on a grid. NFE is num_steps, plus one with a final denoising.

    Args:
        predictor: The predictor.
        **kwargs: See ``GridSampler``.
    """

    def __init__(self, predictor: Predictor, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.predictor = predictor

    def step(self, denoise: Denoiser, x: Tensor, t: Point, s: Point, noise: NoiseStreams) -> Tensor:
        """One step of the predictor."""
        return self.predictor.step(denoise, x, t, s, noise)


@register_sampler("ancestral")
class AncestralSampler(PredictorSampler):
    """Ancestral sampling: DDPM's reverse chain, for any SDE and any grid.

    Of weak order 1; with DDPM's own 1000 steps it is the sampler that DDPM was published with.

    Args:
        variance: "auto", "small", "large" or "learned".
        **kwargs: See ``GridSampler``.

    Raises:
        ValueError: If the variance is unknown, or "learned" of a model that does not learn it.
    """

    def __init__(self, *, variance: ReverseVariance = "auto", **kwargs: Any) -> None:
        super().__init__(AncestralPredictor(variance=variance), **kwargs)


@register_sampler("reverse_diffusion")
class ReverseDiffusionSampler(PredictorSampler):
    """Reverse diffusion sampling (Song et al. 2021, Appendix E), of weak order 1.

    Args:
        **kwargs: See ``GridSampler``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(ReverseDiffusionPredictor(), **kwargs)


@register_sampler("euler_maruyama")
class EulerMaruyamaSampler(PredictorSampler):
    """Euler-Maruyama on the reverse-time SDE, of weak order 1.

    Args:
        **kwargs: See ``GridSampler``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(EulerMaruyamaPredictor(), **kwargs)
