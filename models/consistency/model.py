"""Consistency models: from noisy data at any time to the end of the probability flow, in one call."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sde_lib import SDE, check_per_sample, expand_like

from ..condition import Cond
from ..score_model import NetworkScoreModel, ScoreModel


class ConsistencyModel(nn.Module):
    """f(x_t, t): where the probability-flow ODE through x_t ends, at ``t_end``, in the scale of data.

    With y = x_t / alpha, r = sigma / alpha, its value r_end at t_end, and what the network takes for x0, D(x_t, t),

        f = c_skip y + c_out F,   c_skip = d^2 / ((r - r_end)^2 + d^2),   c_out = d (r - r_end) / sqrt(r^2 + d^2)
          = (c_skip - q d^2 / (r^2 + d^2)) y + q D,   q = (r - r_end) / r,

    (Song et al. 2023, Appendix C), where F is the network's output as EDM has it, D = c_skip y + c_out F with r_end = 0
    (Karras et al. 2022, Table 1). So a network of any parameterization will do, and a trained one begins as its own
    denoiser. At t_end f is y itself.

    It is no score model: f is no posterior mean, there is no density of which it were the score, and so no likelihood.

    Args:
        network: The network, whose answer x0 stands for D.
        t_end: The time of the boundary: 0, where most SDEs leave no noise, so that f gives data, and VE leaves
            sigma_min; or a time above, as the published models have.
        data_std: d, the standard deviation of the data, which plays a part where noise is left at t_end.

    Raises:
        ValueError: If t_end is not in [0, t_max), or data_std not above 0.

    Example:
        >>> model = ConsistencyModel(NetworkScoreModel(UNet(image_size=32), VP(), EDMParameterization()))
        >>> x0 = model(x_T, t)
    """

    def __init__(self, network: ScoreModel, *, t_end: float = 0.0, data_std: float = 0.5) -> None:
        super().__init__()
        if not 0 <= t_end < network.sde.t_max:
            raise ValueError(f"t_end must lie in [0, t_max = {network.sde.t_max:.6g}), got {t_end}; 0 is the data")
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be above 0, got {data_std}; pass the standard deviation of the data")
        self.network, self.t_end, self.data_std = network, t_end, data_std

    @property
    def sde(self) -> SDE:
        """The SDE whose t the model is called with."""
        return self.network.sde

    @property
    def backbone(self) -> nn.Module:
        """The backbone of the network."""
        assert isinstance(self.network, NetworkScoreModel)
        return self.network.backbone

    def with_backbone(self, backbone: nn.Module) -> ConsistencyModel:
        """The same model around another backbone; all else is shared."""
        assert isinstance(self.network, NetworkScoreModel)
        return type(self)(self.network.with_backbone(backbone), t_end=self.t_end, data_std=self.data_std)

    @property
    def ratio_end(self) -> float:
        """r_end, sigma / alpha at ``t_end``."""
        alpha, sigma = self.sde.alpha_sigma(torch.tensor([self.t_end], dtype=torch.float64))
        return float(sigma / alpha)

    def coefficients(self, t: Float[Tensor, " batch"]) -> tuple[Tensor, Tensor]:
        """The factors of y and of D in f, float64 [B] each; 1 and 0 at t_end."""
        alpha, sigma = self.sde.alpha_sigma(t)
        ratio, end, d2 = sigma / alpha, self.ratio_end, self.data_std**2
        above = ratio - end
        share = torch.where(above > 0, above / ratio, 0.0)
        return d2 / (above.square() + d2) - share * d2 / (ratio.square() + d2), share

    def forward(
        self,
        x_t: Float[Tensor, "batch *shape"],
        t: Float[Tensor, " batch"],
        *,
        cond: Cond | None = None,
    ) -> Float[Tensor, "batch *shape"]:
        """Follow the flow through x_t to its end.

        Args:
            x_t: Noisy data, [B, ...].
            t: Times in [t_end, 1], [B]. Where one has less noise than the network was trained on, the network is asked
                at the SDE's first noisy time.
            cond: Condition, or None.

        Raises:
            ValueError: If t is not of shape [B].
        """
        check_per_sample("t", t, x_t.shape[0])
        y = x_t / expand_like(self.sde.alpha(t), x_t)
        skip, share = self.coefficients(t)
        denoised = self.network(x_t, t.clamp_min(self._first_noisy()), cond=cond).x0
        return expand_like(skip, x_t) * y + expand_like(share, x_t) * denoised

    def _first_noisy(self) -> float:
        noise_at_zero = float(self.sde.sigma(torch.zeros(1, dtype=torch.float64)))
        return 0.0 if noise_at_zero > 0 else self.sde.t_min

    def __call__(self, x_t: Tensor, t: Tensor, *, cond: Cond | None = None) -> Tensor:
        """``forward``, with hooks."""
        return super().__call__(x_t, t, cond=cond)
