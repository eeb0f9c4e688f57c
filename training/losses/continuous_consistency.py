"""The loss of consistency models in continuous time, whose two points are infinitely near."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from models import Cond, ConsistencyModel, ScoreModel
from sde_lib import expand_like

from .base import register_loss
from .consistency import ConsistencyLoss, check_consistency_model, noise_ratio
from .step_sampling import log_snr_rate


@register_loss("scm")
class ContinuousConsistency(ConsistencyLoss):
    """sCM (Lu & Song 2024, Algorithm 1), for any SDE and parameterization.

    With tan a = r / d and y = x_t / alpha, the model's answer is f = cos^2(a) y - d sin(a) F, and

        |F - F^- - g / (|g| + 0.1)|^2 / D,   g = A + w (cos(a) df^-/da - A),   A = -cos(a)^2 (d F^- - d(cos(a) y)/da),

    is minimised, whose gradient is that of consistency in the limit. df/da is the derivative along the flow: the slope
    dy/dr is the noise eps without a teacher, and the teacher's eps with one. It is computed by ``torch.func.jvp``, in
    attention by products and a softmax, of which alone it is known. w rises to 1 over ``double_every`` steps, since
    cos(a) df/da - A is large before F is learned.

    Args:
        teacher: The teacher, in evaluation mode; None trains without.
        log_ratio_mean: Mean of log r.
        log_ratio_std: Standard deviation of log r.
        **kwargs: See ``ConsistencyLoss``.
    """

    name = "scm"

    def __init__(
        self,
        *,
        teacher: ScoreModel | None = None,
        log_ratio_mean: float = -1.0,
        log_ratio_std: float = 1.4,
        **kwargs: Any,
    ) -> None:
        super().__init__(log_ratio_mean=log_ratio_mean, log_ratio_std=log_ratio_std, **kwargs)
        self._teacher = teacher

    def tangent(
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, cond: Cond | None
    ) -> tuple[Tensor, Tensor]:
        """f^- and g, before it is normalised, [B, ...] each.

        Args:
            model: The model; what dropout it has is drawn once.
            x0: Data, [B, ...].
            t: Times, [B].
            eps: The noise of x_t, [B, ...].
            cond: Condition, or None.
        """
        sde = model.sde
        x_t = sde.perturb(x0, t, eps)
        slope = eps if self._teacher is None else self._teacher(x_t, t, cond=cond).eps
        angle = self.angle(model, t)
        cos, sin = angle.cos(), angle.sin()
        # cos(a) times the derivatives of t and of x_t = alpha y with respect to a
        rate_t = 2 / (sin * log_snr_rate(sde, t))
        rate_x = expand_like(sde.drift_coeff(t) * rate_t, x_t) * x_t
        rate_x = rate_x + expand_like(sde.alpha(t) * model.data_std / cos, x_t) * slope

        def answer(x: Tensor, time: Tensor) -> Tensor:
            return model(x, time, cond=cond)

        with sdpa_kernel(SDPBackend.MATH), _contiguous_norms(model):
            answered, whole = torch.func.jvp(answer, (x_t, t), (rate_x, rate_t))  # pyright: ignore[reportAssignmentType]
        y = x_t / expand_like(sde.alpha(t), x_t)
        cos, sin = expand_like(cos, x_t), expand_like(sin, x_t)
        first = -(cos**2) * ((cos**2 * y - answered) / sin + sin * y - model.data_std / cos * slope)
        share = min(1.0, (self._step + 1) / self.double_every)
        return answered, first + share * (whole - first)

    @staticmethod
    def angle(model: ConsistencyModel, t: Tensor) -> Tensor:
        """a = arctan(r / d), float64 [B]."""
        return (noise_ratio(model.sde, t) / model.data_std).arctan()

    def __call__(  # pyright: ignore[reportIncompatibleMethodOverride]
        self, model: ConsistencyModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None
    ) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``.

        Raises:
            ValueError: If the boundary of the model is not at t = 0.
        """
        check_consistency_model(model, self.name)
        with torch.no_grad(), torch.random.fork_rng(devices=[x0.device] if x0.is_cuda else []):
            before, tangent = self.tangent(model, x0, t, eps, cond)
            norm = tangent.flatten(1).norm(dim=1)
            tangent = tangent / expand_like(norm + 0.1, tangent)
        answered = model(model.sde.perturb(x0, t, eps), t, cond=cond)
        # F - F^- is -(f - f^-) / (d sin a)
        moved = (before - answered) / expand_like(model.data_std * self.angle(model, t).sin(), x0)
        return (moved - tangent).square().flatten(1).mean(1)


@contextmanager
def _contiguous_norms(model: nn.Module) -> Iterator[None]:
    """Give group norms contiguous inputs: of channels-last ones PyTorch has no derivative in forward mode."""

    def contiguous(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(one.contiguous() for one in inputs)

    norms = (module for module in model.modules() if isinstance(module, nn.GroupNorm))
    handles = [norm.register_forward_pre_hook(contiguous) for norm in norms]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
