"""The bound of an autoencoder alone."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from likelihood import first_stage_terms, nats_to_bits_per_dim
from models import Cond, FirstStage
from sde_lib import SDE, LearnedVP

from .base import Loss, register_loss


@register_loss("autoencoder")
class AutoencoderLoss(Loss):
    """-log p(x | z) + KL(q(z | x) || N(0, I)) in bits/dim, z drawn from q (Kingma & Welling 2014, Eq. 10).

    Of a codebook, with what its vectors and the encoder learn by (van den Oord et al. 2017, Eq. 3), in nats like the
    rest. The model is a ``FirstStage``; it takes no time and no condition.
    """

    name = "autoencoder"
    own_weighting = "eps"  # there is no error to weight

    def check(self, sde: SDE) -> None:
        """Refuse a noise schedule that is learned, which would get no gradient.

        Raises:
            ValueError: In one line.
        """
        if isinstance(sde, LearnedVP):
            raise ValueError("loss 'autoencoder' trains no noise schedule, got a learned one; set sde.name=vp")

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min, which nothing looks at."""
        return sde.t_min + 0 * u.double()

    def __call__(self, model: Any, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The bound of each sample in bits/dim, [B]; the first numbers of ``eps`` are the noise of z.

        Raises:
            ValueError: If the model is no first stage.
        """
        if not isinstance(model, FirstStage):
            raise ValueError("loss 'autoencoder' needs a first stage, such as model.backbone=autoencoder; set it")
        terms = first_stage_terms(model, x0, noise_of_latent(eps, model), num_levels=self.num_levels)
        if terms.penalty is None:
            return terms.bits_per_dim
        return nats_to_bits_per_dim(terms.total + terms.penalty, terms.num_dims)


def noise_of_latent(noise: Tensor, first_stage: FirstStage) -> Tensor:
    """Noise for a latent, of noise for the data, which have as many numbers at least."""
    shape = first_stage.latent_shape
    return noise.flatten(1)[:, : math.prod(shape)].unflatten(1, shape)
