"""Correctors: Langevin steps that bring the state closer to p_t without changing t (Song et al. 2021, Appendix G)."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from runtime.registry import Registry
from sde_lib import NoiseStreams, Point, combine, expand_like

from .denoiser import Denoiser


class Corrector(ABC):
    """Moves the state at one noise level; stateless, the model is an argument.

    Args:
        snr: r, the size of a step, above 0.

    Raises:
        ValueError: If snr is not above 0.
    """

    def __init__(self, *, snr: float = 0.16) -> None:
        if not 0 < snr < math.inf:
            raise ValueError(f"snr must be above 0 and finite, got {snr}; 0.16 is usual")
        self.snr = snr

    @abstractmethod
    def step(
        self, denoise: Denoiser, x: Float[Tensor, "batch *shape"], t: Point, noise: NoiseStreams
    ) -> Float[Tensor, "batch *shape"]:
        """One step.

        Args:
            denoise: The model.
            x: State at t, [B, ...].
            t: A point with noise.
            noise: One random stream a sample.

        Returns:
            Another state at t, [B, ...].
        """


CORRECTORS: Registry[Corrector] = Registry("corrector")
register_corrector, available_correctors, make_corrector = CORRECTORS.register, CORRECTORS.names, CORRECTORS.make


def alpha_of_table_step(t: Point) -> float:
    """(alpha(t) / alpha(t - 1 / N))^2, which is DDPM's alpha_i = 1 - beta_i on its table of N rows, and 1 for VE."""
    times = torch.tensor([t.t, max(t.t - 1 / (t.sde.table_size or 1000), 0.0)], dtype=torch.float64)
    log_alpha, log_alpha_before = t.sde.log_alpha(times).tolist()
    return math.exp(2 * (log_alpha - log_alpha_before))


@register_corrector("langevin")
class LangevinCorrector(Corrector):
    """x + step score + sqrt(2 step) z,   step = 2 alpha_i (r |z| / |score|)^2

    (Song et al. 2021, Algorithms 4 and 5), alpha_i = 1 - beta_i of a table of 1000 steps if the SDE has none. The norms
    are those of each sample, where their code takes the mean over the batch. The step is fit for many dimensions, where
    the norms hardly vary; in few, a score near 0 makes it very long. A score of 0, as of a new network, says no size;
    that of noise, |z| / sigma, is then taken.

    Args:
        snr: r, above 0.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Point, noise: NoiseStreams) -> Tensor:
        """Algorithms 4 and 5."""
        eps, z = denoise(x, t).eps, noise.normal_like(x)
        of_z, of_eps = _norms(z), _norms(eps)
        ratio = t.sigma * of_z / torch.where(of_eps > 0, of_eps, of_z)
        step = 2 * alpha_of_table_step(t) * (self.snr * ratio).square()
        # x + step score + sqrt(2 step) z
        return x.addcmul(expand_like(-step / t.sigma, x), eps).addcmul_(expand_like((2 * step).sqrt(), x), z)


@register_corrector("annealed_langevin")
class AnnealedLangevinCorrector(Corrector):
    """x + step score + sqrt(2 step) z,   step = 2 alpha_i (r sigma)^2

    (Song et al. 2021's code, "ald"): the steps of Song & Ermon 2019, Algorithm 1, proportional to sigma^2.

    Args:
        snr: r, above 0; below about 0.7, where the step would overshoot.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Point, noise: NoiseStreams) -> Tensor:
        """Algorithm 1 of Song & Ermon 2019."""
        return langevin_step(denoise, x, t, 2 * alpha_of_table_step(t) * (self.snr * t.sigma) ** 2, noise)


@register_corrector("none")
class NoCorrector(Corrector):
    """x: all work is left to the predictor.

    Args:
        snr: Not used.
    """

    def step(self, denoise: Denoiser, x: Tensor, t: Point, noise: NoiseStreams) -> Tensor:
        """Nothing."""
        return x


def langevin_step(denoise: Denoiser, x: Tensor, t: Point, step: float, noise: NoiseStreams) -> Tensor:
    """x + step score + sqrt(2 step) z, with score = -eps / sigma."""
    return combine((1.0, x), (-step / t.sigma, denoise(x, t).eps), (math.sqrt(2 * step), noise.normal_like(x)))


def _norms(x: Tensor) -> Tensor:
    """The Euclidean norm of each sample, float64 [B]."""
    return torch.linalg.vector_norm(x.unsqueeze(1).flatten(1), dim=1).double()
