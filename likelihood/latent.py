"""The bound of a latent diffusion: distortion of the decoder and rate of the prior."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from models import Cond, GaussianLatent, LatentDiffusion, VectorLatent
from sde_lib import NoiseStreams

from .base import LikelihoodEstimator, LikelihoodTerms
from .batch_checks import check_batch
from .continuous import ContinuousBound
from .first_stage import pixel_nats


class LatentBound(LikelihoodEstimator):
    """-log p(x) <= distortion + rate, with one z of q(z | x) a datum:

        distortion = -log p(x | z),
        rate = -log p(z) - H(q(z | x)), whose mean over z is KL(q(z | x) || p(z)),

    where an estimator of densities says -log p(z), or a bound above it (Vahdat et al. 2021, Eq. 5). Of latents that are
    codes it is -log of their probability, and H is 0. Where q's noise is that of the SDE's first time and z is not
    standardized, z is the diffusion's own state of the mean, and ``ContinuousBound`` gives the rate as L_T + 1/2
    integral, of the mean (Heek et al. 2026): H and the decoder's term of z are the same there. Every term is per datum
    x, and bits/dim divides by the dimensions of x, not of z.

    Args:
        prior: The estimator of -log p(z). For densities it is built with ``num_levels=None``: ``ContinuousBound``, or
            ``FlowLikelihood`` with dequantization "none"; for codes, any with the number of their levels.
        num_levels: Number of grey levels of x; None measures the density of a Gaussian decoder.
    """

    def __init__(self, prior: LikelihoodEstimator, *, num_levels: int | None) -> None:
        self.prior, self.num_levels = prior, num_levels

    @torch.no_grad()
    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: LatentDiffusion, x0: Tensor, *, cond: Cond | None = None, noise: NoiseStreams | None = None
    ) -> LikelihoodTerms:
        """Evaluate the bound; see ``LikelihoodEstimator``.

        Args:
            model: The latent diffusion.
            x0: Data, [B, ...].
            cond: Condition of the prior.
            noise: One random stream a sample: for z first, then for the prior's estimator.

        Returns:
            ``reconstruction`` is the distortion; ``prior`` and ``diffusion`` add up to the rate.

        Raises:
            ValueError: If the estimator of the prior is of other levels than the latents, or these have no density.
        """
        noise = check_batch(x0, cond, noise)
        theirs, ours = getattr(self.prior, "num_levels", None), model.first_stage.latent_levels
        if theirs != ours:
            raise ValueError(f"the prior's estimator is of num_levels {theirs}, got latents of {ours}; pass it these")
        latent = model.first_stage.encode(x0)
        if model.is_own_state and getattr(self.prior, "dequantization", "none") != "none":
            raise ValueError(
                "z has the noise of the SDE's first time already, which dequantization 'decoder' adds once more; take "
                "'none' (eval.ode_dequantization=none)"
            )
        if isinstance(latent, VectorLatent):
            raise ValueError(
                "a diffusion of vectors that are quantized afterwards has no likelihood, got one of a codebook's; "
                "measure the autoencoder alone, or take one with bottleneck diagonal or fsq"
            )
        if not isinstance(latent, GaussianLatent):
            z = latent.mean
            terms = self.prior(model.prior, z, cond=cond, noise=noise)
            rest = terms.diffusion + terms.reconstruction
        elif isinstance(self.prior, ContinuousBound) and model.is_own_state:
            z = latent.draw(noise.normal_like(latent.mean))
            terms = self.prior(model.prior, model.standardize(latent.mean), cond=cond, noise=noise)
            rest = terms.diffusion
        else:
            z = latent.draw(noise.normal_like(latent.mean))
            terms = self.prior(model.prior, model.standardize(z), cond=cond, noise=noise)
            rest = terms.diffusion + terms.reconstruction + model.log_volume - latent.entropy
        changes: dict[str, Any] = {
            "diffusion": rest,
            "reconstruction": pixel_nats(model.first_stage.decode(z), x0, self.num_levels),
            "num_dims": x0[0].numel(),
        }
        return replace(terms, **changes)
