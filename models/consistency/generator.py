"""One-step generators: from noise to data in one call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from ..condition import Cond
from .model import ConsistencyModel


class Generator(ConsistencyModel):
    """G(x_T): the answer at t_max, where all is noise, as a sample of the data. It has no answer at other times.

    Any parameterization reads the network's output; v and x0 keep the digits of the answer where alpha is small.

    Args:
        network: The network.
        **kwargs: See ``ConsistencyModel``.

    Source: Yin et al. 2023 (DMD), Section 3.1.

    Example:
        >>> generator = Generator(NetworkScoreModel(UNet(image_size=32), VP(), VParameterization()))
        >>> x0 = generator.generate(generator.sde.prior_std * torch.randn(16, 3, 32, 32))
    """

    def generate(
        self, x_T: Float[Tensor, "batch *shape"], *, cond: Cond | None = None
    ) -> Float[Tensor, "batch *shape"]:
        """Samples of noise.

        Args:
            x_T: Noise of standard deviation ``sde.prior_std``, [B, ...].
            cond: Condition, or None.
        """
        t = torch.full((x_T.shape[0],), self.sde.t_max, dtype=torch.float64, device=x_T.device)
        return self(x_T, t, cond=cond)
