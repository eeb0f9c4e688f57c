"""A network that says how probable each grey level of a pixel is."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from runtime.options import whole_number
from sde_lib import SDE, expand_like

from .parameterization import Parameterization, Reading, TimeInput, register_parameterization


class _PosteriorMean(torch.autograd.Function):
    """E[l] under p_k proportional to exp(logit_k - c (x - l_k)^2), with derivatives in closed form:

        dE/dlogit_k = p_k (l_k - E),   dE/dx = 2 c Var[l],   dE/dc = -Cov[l, (x - l)^2].

    The tensors of all levels are by far the largest there are: autograd would keep six of them where one will do.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, c: Tensor, level: Tensor) -> Tensor:
        probs = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
        # a sample at a time stays in the processor's cache
        for out, logit, place, factor in zip(probs, logits, x.unsqueeze(-1), c, strict=True):
            away = place - level
            torch.addcmul(logit, away, away * factor, value=-1, out=away)
            torch.softmax(away, -1, out=out)
        mean = probs @ level
        ctx.save_for_backward(probs, x, c, level, mean)
        return mean

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, *grads: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor | None, None]:
        probs, x, c, level, mean = ctx.saved_tensors
        (grad,) = grads
        of_logits = torch.empty_like(probs)
        of_x = torch.empty_like(x) if ctx.needs_input_grad[1] else None
        of_c = torch.empty_like(c) if ctx.needs_input_grad[2] else None
        for k in range(len(probs)):
            away = level - mean[k].unsqueeze(-1)
            weighted = torch.mul(probs[k], away, out=of_logits[k])
            if of_x is not None:
                of_x[k] = 2 * c[k] * grad[k] * torch.linalg.vecdot(weighted, away)
            if of_c is not None:
                square = (x[k].unsqueeze(-1) - level).square_()
                of_c[k] = -(grad[k] * torch.linalg.vecdot(weighted, square)).sum()
            weighted.mul_(grad[k].unsqueeze(-1))
        return of_logits, of_x, of_c, None


def level_posterior_mean(
    logits: Float[Tensor, "batch channels levels *space"],
    x: Float[Tensor, "batch channels *space"],
    log_snr: Float[Tensor, " batch"],
) -> Float[Tensor, "batch channels *space"]:
    """E[x0 | x] of each pixel, whose prior over the levels l_k = 2 k / (K - 1) - 1 the logits give, by Bayes' rule:

        p(k | x) proportional to exp(logit_k - (x - l_k)^2 exp(lambda) / 2).

    It has first derivatives only.

    Args:
        logits: [B, C, K, ...], float32 or wider.
        x: Noisy data over alpha, [B, C, ...].
        log_snr: lambda, [B].
    """
    level = torch.linspace(-1, 1, logits.shape[2], dtype=torch.float64, device=logits.device).to(logits.dtype)
    # levels last: there they lie side by side if the network works channels-last
    return _PosteriorMean.apply(logits.movedim(2, -1), x, (0.5 * log_snr.exp()).to(logits.dtype), level)


@register_parameterization("levels")
class LevelsParameterization(Parameterization):
    """The output is the logits of each pixel's grey level given its surroundings; x0 follows by Bayes' rule.

    What the pixel's own noisy value says of its level is thus exact, at every noise, and the network has only to learn
    what the other pixels say. Where noise is small beside the distance of two levels, x0 is right without a network.
    The model is one of pixels that are independent given x_t, as the true one is in the limit of no noise.

    The network has ``num_levels`` outputs a channel of the data.

    Args:
        num_levels: Number of grey levels K of the data, at least 2.
        time_input: See ``time_input``.

    Raises:
        ValueError: If num_levels is below 2.
    """

    def __init__(self, *, num_levels: int, time_input: TimeInput = "auto") -> None:
        super().__init__(time_input=time_input)
        num_levels = whole_number("num_levels", num_levels, least=2, fix="pass the data's")
        self.num_levels = self.outputs_per_channel = num_levels

    def c_in(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / sqrt(alpha^2 + sigma^2), so that VE's large noise stays in range."""
        return (sde.alpha(t).square() + sde.sigma(t).square()).rsqrt()

    def read(self, raw: Tensor, x_t: Tensor, sde: SDE, t: Tensor) -> Reading:
        """x0 = the posterior mean of each pixel."""
        logits = raw.unflatten(1, (x_t.shape[1], self.num_levels))
        alpha = sde.alpha(t)
        return "x0", level_posterior_mean(logits, x_t / expand_like(alpha, x_t), sde.log_snr(t))
