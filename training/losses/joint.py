"""The bound of a latent diffusion whose autoencoder is trained with it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from likelihood import pixel_nats, prior_kl
from models import Cond, GaussianLatent, NetworkScoreModel, is_own_state
from sde_lib import SDE, LearnedVP

from .autoencoder import noise_of_latent
from .base import register_loss
from .denoising import DenoisingScoreMatching


@register_loss("joint")
class JointLoss(DenoisingScoreMatching):
    """-log p(x) <= distortion + rate in bits/dim of x, with one z of q(z | x) and one t a datum:

        distortion = -log p(x | z),
        rate = L_T(z) + 1/2 integral over lambda of |eps error|^2 + D/2 log(2 pi e r^2) - H(q(z | x)),

    where r = sigma / alpha at t_min and D is the size of z (Vahdat et al. 2021, Theorem 1). Where q's noise is r
    itself, z is the diffusion's own state of the mean at t_min, and the rate is L_T + 1/2 integral, of the mean (Heek
    et al. 2026). Encoder, decoder and score get the gradient of both. The model has a ``first_stage``.
    """

    name = "joint"
    own_weighting = "likelihood"
    wants_more_noise = True

    def check(self, sde: SDE) -> None:
        """Refuse a noise schedule that is learned.

        Raises:
            ValueError: In one line.
        """
        if isinstance(sde, LearnedVP):
            raise ValueError("loss 'joint' trains no noise schedule, got a learned one; set sde.name=vp")

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        model: NetworkScoreModel,
        x0: Tensor,
        t: Tensor,
        eps: Tensor,
        *,
        cond: Cond | None = None,
        more_noise: Tensor | None = None,
    ) -> Tensor:
        """The bound of each sample in bits/dim, [B]; the first numbers of both noises, ``eps`` for z_t, are used.

        Raises:
            ValueError: If the model has no first stage.
        """
        first_stage = model.first_stage
        if first_stage is None:
            raise ValueError("loss 'joint' needs model.first_stage, which it trains; set it, or leave the loss at auto")
        of_z = noise_of_latent(torch.randn_like(x0) if more_noise is None else more_noise, first_stage)
        answer = first_stage(x0, of_z)
        latent = answer.latent
        assert isinstance(latent, GaussianLatent)
        distortion = pixel_nats(answer.pixels, x0, self.num_levels)
        sde, t_min = model.sde, torch.tensor([model.sde.t_min], dtype=torch.float64)
        own = is_own_state(first_stage, sde)
        z = latent.mean if own else latent.draw(of_z)
        # in bits a dimension of z
        diffusion = super().__call__(model, z, t, noise_of_latent(eps, first_stage), cond=cond)
        rate = diffusion * z[0].numel() * math.log(2) + prior_kl(z, sde, sde.t_max)
        if not own:
            entropy_of_state = 0.5 * (math.log(2 * math.pi) + 1 - float(sde.log_snr(t_min)))
            rate = rate + z[0].numel() * entropy_of_state - latent.entropy
        return (distortion + rate) / (x0[0].numel() * math.log(2))
