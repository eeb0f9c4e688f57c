"""A network that says how probable each grey level of a pixel is."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from sde_lib import SDE, expand_like

from .parameterization import Parameterization, Reading, TimeInput, register_parameterization


def level_posterior_mean(
    logits: Float[Tensor, "batch channels levels *space"],
    x: Float[Tensor, "batch channels *space"],
    log_snr: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels *space"]:
    """E[x0 | x] of each pixel, whose prior over the levels l_k = 2 k / (K - 1) - 1 the logits give, by Bayes' rule:

        p(k | x) proportional to exp(logit_k - (x - l_k)^2 exp(lambda) / 2).

    The exponents are taken from the level nearest to x, so that large exp(lambda) costs no digits.

    Args:
        logits: [B, C, K, ...], float32 or wider.
        x: Noisy data over alpha, [B, C, ...].
        log_snr: lambda, [B].
    """
    last = logits.shape[2] - 1
    width = 2 / last
    nearest = (0.5 * (x.detach() + 1) * last).round().clamp(0, last)
    # between neighbours l_k the difference is exact
    anchor = nearest * width - 1
    level = torch.arange(last + 1, dtype=logits.dtype, device=logits.device)
    level = level.reshape(-1, *[1] * (x.ndim - 2))
    away = (level - nearest.unsqueeze(2)) * width
    precision = expand_like((0.5 * log_snr.exp()).to(logits.dtype), logits)
    exponent = logits - precision * away * (away - 2 * (x - anchor).unsqueeze(2))
    return anchor + (exponent.softmax(2) * away).sum(2)


@register_parameterization("levels")
class LevelsParameterization(Parameterization):
    """The output is the logits of each pixel's grey level given its surroundings; x0 follows by Bayes' rule.

    What the pixel's own noisy value says of its level is thus exact, at every noise, and the network has only to learn
    what the other pixels say. Where noise is small beside the distance of two levels, x0 is right without a network. The
    model is one of pixels that are independent given x_t, as the true one is in the limit of no noise.

    The network has ``num_levels`` outputs a channel of the data.

    Args:
        num_levels: Number of grey levels K of the data, at least 2.
        noise_input: See ``time_input``.

    Raises:
        ValueError: If num_levels is below 2.
    """

    def __init__(self, *, num_levels: int, noise_input: TimeInput = "auto") -> None:
        super().__init__(noise_input=noise_input)
        if isinstance(num_levels, bool) or not isinstance(num_levels, int) or num_levels < 2:
            raise ValueError(f"num_levels must be at least 2, a whole number, got {num_levels}; pass the data's")
        self.num_levels = self.outputs_per_channel = num_levels

    def c_in(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 + sigma^2), so that VE's large noise stays in range."""
        return (sde.alpha(t).square() + sde.sigma(t).square()).rsqrt()

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: Tensor) -> Reading:
        """x0 = the posterior mean of each pixel."""
        logits = raw.unflatten(1, (x_t.shape[1], self.num_levels))
        alpha = sde.alpha(t)
        return "x0", level_posterior_mean(logits, x_t / expand_like(alpha, x_t), sde.log_snr(t))
