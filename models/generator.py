"""One-step generators: from noise to data in one call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sde_lib import SDE

from .condition import Cond
from .score_model import NetworkScoreModel


class Generator(nn.Module):
    """G(x_T): a network's x0 at t_max, where all is noise, as a sample of the data.

    It is no score model: its answer is no posterior mean, and it has no density, and so no likelihood. Any
    parameterization reads the network's output; those with x0 in it, such as v or x0, keep its digits where alpha is
    small.

    Args:
        network: The network.

    Source: Yin et al. 2023 (DMD), Section 3.1.

    Example:
        >>> generator = Generator(NetworkScoreModel(UNet(image_size=32), VP(), VParameterization()))
        >>> x0 = generator(generator.sde.prior_std * torch.randn(16, 3, 32, 32))
    """

    def __init__(self, network: NetworkScoreModel) -> None:
        super().__init__()
        self.network = network

    @property
    def sde(self) -> SDE:
        """The SDE whose noise it takes."""
        return self.network.sde

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the network."""
        return self.network.backbone

    def with_backbone(self, backbone: nn.Module) -> Generator:
        """The same generator around another backbone; all else is shared."""
        return Generator(self.network.with_backbone(backbone))

    def forward(self, x_T: Float[Tensor, "batch *shape"], *, cond: Cond | None = None) -> Float[Tensor, "batch *shape"]:
        """Samples of noise.

        Args:
            x_T: Noise of standard deviation ``sde.prior_std``, [B, ...].
            cond: Condition, or None.
        """
        t = torch.full((x_T.shape[0],), self.sde.t_max, dtype=torch.float64, device=x_T.device)
        return self.network(x_T, t, cond=cond).x0

    def __call__(self, x_T: Tensor, *, cond: Cond | None = None) -> Tensor:
        """``forward``, with hooks."""
        return super().__call__(x_T, cond=cond)
