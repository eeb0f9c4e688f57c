"""Distortion and rate of an autoencoder, whose sum is a bound on -log p(x)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, FirstStage, GaussianPixels, PixelDistribution
from sde_lib import NoiseStreams

from .batch_checks import check_batch
from .decoder import discretized_gaussian_log_prob, levels_of
from .units import nats_to_bits_per_dim


def pixel_nats(
    pixels: PixelDistribution, x0: Float[Tensor, "batch *shape"], num_levels: int | None
) -> Float[Tensor, " batch"]:
    """-log p(x | z), summed over the dimensions, in nats, float64 [B].

    Args:
        pixels: The decoder's distribution.
        x0: Data in [-1, 1] on their grey levels, or of a density.
        num_levels: Number of grey levels; None measures the density of a Gaussian.

    Raises:
        ValueError: If x0 is off its levels, or the distribution is of another number of them.
    """
    if isinstance(pixels, GaussianPixels):
        if num_levels is None:
            deviation = (x0.double() - pixels.mean.double()) * (-pixels.log_std.double()).exp()
            density = 0.5 * deviation.square() + pixels.log_std.double()
            return density.flatten(1).sum(1) + 0.5 * x0[0].numel() * math.log(2 * math.pi)
        log_prob = discretized_gaussian_log_prob(x0, pixels.mean, pixels.log_std, num_levels=num_levels)
        return -log_prob.flatten(1).sum(1)
    known = pixels.log_probs.shape[2]
    if num_levels != known:
        raise ValueError(f"the decoder is of {known} grey levels, got data of {num_levels}; train one for these")
    level = levels_of(x0, known).long().unsqueeze(2)
    return -pixels.log_probs.gather(2, level).double().flatten(1).sum(1)


@dataclass(frozen=True)
class FirstStageTerms:
    """-log p(x) <= distortion + rate, in nats per image.

    Attributes:
        distortion: -log p(x | z) for a z of q(z | x), float64 [B].
        rate: KL(q(z | x) || p(z)), or a bound above it, float64 [B].
        squared_error: The mean over dimensions of |x - E[x | z]|^2, float64 [B].
        num_dims: Number of dimensions of one datum: of the pixels, not of the latent.
    """

    distortion: Float[Tensor, " batch"]
    rate: Float[Tensor, " batch"]
    squared_error: Float[Tensor, " batch"]
    num_dims: int

    @property
    def total(self) -> Float[Tensor, " batch"]:
        """distortion + rate, [B]."""
        return self.distortion + self.rate

    @property
    def bits_per_dim(self) -> Float[Tensor, " batch"]:
        """total / (num_dims ln 2), [B]."""
        return nats_to_bits_per_dim(self.total, self.num_dims)


def first_stage_terms(
    model: FirstStage,
    x0: Float[Tensor, "batch *shape"],
    eps: Float[Tensor, "batch *latent"],
    *,
    num_levels: int | None,
) -> FirstStageTerms:
    """Distortion and rate of an autoencoder alone, whose prior is p(z) = N(0, I) (Kingma & Welling 2014, Eq. 10), or
    that all codes are equally likely.

    Args:
        model: The autoencoder.
        x0: Data, [B, ...].
        eps: Standard normal noise that z is drawn by, [B, *latent_shape].
        num_levels: See ``pixel_nats``.
    """
    answer = model(x0, eps)
    return FirstStageTerms(
        distortion=pixel_nats(answer.pixels, x0, num_levels),
        rate=answer.latent.rate,
        squared_error=(x0.double() - answer.pixels.mean.double()).square().flatten(1).mean(1),
        num_dims=x0[0].numel(),
    )


class FirstStageBound:
    """The bound of an autoencoder alone, -log p(x) <= E_q[-log p(x | z)] + KL(q(z | x) || p(z)), with one z a datum.

    Args:
        num_levels: See ``pixel_nats``.
    """

    def __init__(self, *, num_levels: int | None) -> None:
        self.num_levels = num_levels

    @torch.no_grad()
    def __call__(
        self, model: FirstStage, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> FirstStageTerms:
        """Evaluate the bound.

        Args:
            model: The autoencoder.
            x0: Data in the model's space, [B, ...].
            cond: None.
            noise: One random stream a sample; None takes fresh ones.

        Raises:
            ValueError: If the data are off their levels, or noise has another length.
        """
        noise = check_batch(x0, cond, noise)
        eps = noise.normal_like(x0.new_empty(len(x0), *model.latent_shape))
        return first_stage_terms(model, x0, eps, num_levels=self.num_levels)
