"""A latent diffusion: an autoencoder, and a score model of its latents as their prior."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sde_lib import SDE, last_noisy_time

from .first_stage import FirstStage
from .score_model import ScoreModel


def is_own_state(first_stage: FirstStage, sde: SDE) -> bool:
    """True if the noise of z is that of the SDE's first time: z / alpha is then the diffusion's own state of the mean.

    Source: Heek et al. 2026.
    """
    if first_stage.log_snr is None:
        return False
    first = torch.tensor([last_noisy_time(sde)], dtype=torch.float64)
    return math.isclose(float(sde.log_snr(first)), first_stage.log_snr, rel_tol=1e-6)


class LatentDiffusion(nn.Module):
    """p(x) = E over z of p(x | z), whose prior p(z) a score model says.

    The score model sees standardized latents, (z - mean) / std of each channel.

    Args:
        first_stage: The autoencoder.
        prior: The score model of standardized latents.
        mean: Mean of each channel of z, [c]; zeros when None.
        std: Standard deviation of each channel, [c]; ones when None.

    Source: Rombach et al. 2022, Section 3; Vahdat et al. 2021 (LSGM) for the likelihood.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, first_stage: FirstStage, prior: ScoreModel, *, mean: Tensor | None = None, std: Tensor | None = None
    ) -> None:
        super().__init__()
        self.first_stage, self.prior = first_stage, prior
        channels = first_stage.latent_shape[0]
        self.register_buffer("mean", torch.zeros(channels) if mean is None else mean)
        self.register_buffer("std", torch.ones(channels) if std is None else std)

    @property
    def sde(self) -> SDE:
        """The SDE of the prior."""
        return self.prior.sde

    @property
    def is_own_state(self) -> bool:
        """See ``is_own_state``; of latents that are not standardized."""
        return is_own_state(self.first_stage, self.sde) and bool((self.std == 1).all())

    @property
    def log_volume(self) -> float:
        """sum log std over the dimensions of z: log p(z) is that of standardized latents less this."""
        per_channel = math.prod(self.first_stage.latent_shape[1:])
        return per_channel * float(self.std.double().log().sum())

    def standardize(self, z: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """(z - mean) / std."""
        return (z - self._along(self.mean, z)) / self._along(self.std, z)

    def restore(self, standardized: Float[Tensor, "batch *latent"]) -> Float[Tensor, "batch *latent"]:
        """The inverse of ``standardize``: latents that the decoder takes, of samples of the prior."""
        return standardized * self._along(self.std, standardized) + self._along(self.mean, standardized)

    @staticmethod
    def _along(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like).view(1, -1, *[1] * (like.ndim - 2))
