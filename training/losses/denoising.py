"""Denoising score matching, on a table's timesteps and in continuous time."""

from __future__ import annotations

import math

from torch import Tensor

from models import Cond, ScoreModel
from sde_lib import SDE

from .base import Loss, register_loss
from .step_sampling import LogSNRTimes, LossHistory, TimeSampler, log_snr_rate


class TableLoss(Loss):
    """A loss at the timesteps of the SDE's table; with "importance" they are drawn by ``LossHistory``."""

    name = "ddpm"

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """(k + 1) / N for a uniform timestep k of N."""
        if sde.table_size is None:
            raise ValueError(f"loss {self.name!r} needs an SDE with a table, such as 'ddpm'; or set training.loss=dsm")
        return ((u.double() * sde.table_size).floor().clamp(max=sde.table_size - 1) + 1) / sde.table_size

    @staticmethod
    def timesteps(sde: SDE, t: Tensor) -> Tensor:
        """The timesteps k of times (k + 1) / N, [B]."""
        assert sde.table_size is not None
        return (t * sde.table_size).round().long() - 1

    def important_times(self, sde: SDE) -> TimeSampler:
        """A ``LossHistory`` of the table."""
        assert sde.table_size is not None
        return LossHistory(sde.table_size)


@register_loss("ddpm")
class DDPMLoss(TableLoss):
    """L_simple: t uniform on the timesteps of the SDE's table (Ho et al. 2020, Eq. 14)."""


@register_loss("dsm")
class DenoisingScoreMatching(Loss):
    """Denoising score matching with t uniform on [t_min, t_max] (Song et al. 2021, Eq. 7).

    With weighting "likelihood" each sample's loss is an unbiased estimate, in bits/dim, of the integral

        1/2 integral over t of (g^2 / sigma^2) |eps error|^2 = 1/2 integral over lambda of |eps error|^2,

    which with L_T and L_0 bounds -log p(x0) (Song et al. 2021b, Eq. 8 and Theorem 1). Times drawn by "importance" have
    p(t) proportional to g^2 / sigma^2 = -d lambda / dt, that is, are uniform in log-SNR (their Section 5.1).
    """

    name = "dsm"

    def check(self, sde: SDE) -> None:
        """Accept any SDE and weighting."""

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min + u (t_max - t_min)."""
        return sde.t_min + u.double() * (sde.t_max - sde.t_min)

    def important_times(self, sde: SDE) -> TimeSampler:
        """Times uniform in log-SNR, for the likelihood weighting.

        Raises:
            ValueError: If the loss has another weighting.
        """
        if self.weighting != "likelihood":
            raise ValueError("step sampling 'importance' of loss 'dsm' needs weighting 'likelihood'; set it too")
        return LogSNRTimes(sde)

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Cond | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``."""
        if self.weighting != "likelihood":
            return super().__call__(model, x0, t, eps, cond=cond)
        sde = model.sde
        error = model(sde.perturb(x0, t, eps), t, cond=cond).eps - eps
        scale = 0.5 * (sde.t_max - sde.t_min) * log_snr_rate(sde, t) / math.log(2)
        return scale * error.square().flatten(1).mean(1).double()


@register_loss("reflow")
class ReflowLoss(DenoisingScoreMatching):
    """Denoising score matching on couples: eps is the noise that a flow turned into x0 (Liu et al. 2023, Eq. 1).

    Its minimum is the velocity of a straighter flow with the same distributions, and no posterior mean of the data.
    """

    name = "reflow"
