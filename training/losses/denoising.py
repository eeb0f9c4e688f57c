"""Denoising score matching, on a table's rows and in continuous time."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from models import ScoreModel
from sde_lib import SDE

from .base import Loss, register_loss
from .time_sampling import LossHistory, TimeDraw, spread


class TableLoss(Loss):
    """A loss at the rows of the SDE's table; with "importance", rows are drawn by ``LossHistory``.

    Attributes:
        name: What errors call it.
    """

    name = "ddpm"

    def __init__(
        self,
        *,
        weighting: str = "eps",
        data_std: float = 0.5,
        time_sampling: str = "uniform",
        num_levels: int | None = None,
    ) -> None:
        super().__init__(weighting=weighting, data_std=data_std, time_sampling=time_sampling, num_levels=num_levels)
        self.history: LossHistory | None = None

    def check(self, sde: SDE) -> None:
        """Refuse an SDE without a table, and make room for the history."""
        self.times(sde, torch.zeros(1))
        if self.weighting == "likelihood":
            raise ValueError("weighting 'likelihood' is one of continuous time; use loss 'dsm', or loss 'vlb'")
        if self.time_sampling == "importance":
            assert sde.table_size is not None
            self.history = LossHistory(sde.table_size)

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """(row + 1) / N for a uniform row."""
        if sde.table_size is None:
            raise ValueError(f"loss {self.name!r} needs an SDE with a table, such as 'ddpm'; or set training.loss=dsm")
        return ((u.double() * sde.table_size).floor().clamp(max=sde.table_size - 1) + 1) / sde.table_size

    @staticmethod
    def rows(sde: SDE, t: Tensor) -> Tensor:
        """The rows of times from ``draw``, [B]."""
        assert sde.table_size is not None
        return (t * sde.table_size).round().long() - 1

    def draw(self, sde: SDE, u: Tensor) -> TimeDraw:
        """Rows, and their weights."""
        if self.history is None:
            return super().draw(sde, u)
        rows, weight = self.history.draw(u)
        return TimeDraw((rows.double() + 1) / self.history.num_rows, weight)

    def observe(self, sde: SDE, t: Tensor, losses: Tensor) -> None:
        """Remember the losses of these rows."""
        if self.history is not None:
            self.history.update(self.rows(sde, t), losses)

    def memory(self) -> dict[str, Tensor]:
        """The history."""
        return {} if self.history is None else {"values": self.history.values, "counts": self.history.counts}


@register_loss("ddpm")
class DDPMLoss(TableLoss):
    """L_simple: t uniform on the rows of the SDE's table (Ho et al. 2020, Eq. 14)."""


@register_loss("dsm")
class DenoisingScoreMatching(Loss):
    """Denoising score matching with t uniform on [t_min, t_max] (Song et al. 2021, Eq. 7).

    With weighting "likelihood" each sample's loss is an unbiased estimate, in bits/dim, of the integral

        1/2 integral over t of (g^2 / sigma^2) |eps error|^2 = 1/2 integral over lambda of |eps error|^2,

    which with L_T and L_0 bounds -log p(x0) (Song et al. 2021b, Eq. 8 and Theorem 1). Times drawn by "importance" have
    p(t) proportional to g^2 / sigma^2 = -d lambda / dt, that is, are uniform in log-SNR (their Section 5.1).
    """

    def check(self, sde: SDE) -> None:
        """Importance sampling goes with the likelihood weighting."""
        if self.time_sampling == "importance" and self.weighting != "likelihood":
            raise ValueError("time sampling 'importance' of loss 'dsm' needs weighting 'likelihood'; set it too")

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min + u (t_max - t_min)."""
        return sde.t_min + u.double() * (sde.t_max - sde.t_min)

    def draw(self, sde: SDE, u: Tensor) -> TimeDraw:
        """Uniform times, or times uniform in log-SNR with their weights."""
        if self.time_sampling != "importance":
            return super().draw(sde, u)
        high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
        t = sde.time_from_log_snr(high + spread(u.double()) * (low - high)).clamp(sde.t_min, sde.t_max)
        return TimeDraw(t, (high - low) / (log_snr_rate(sde, t) * (sde.t_max - sde.t_min)))

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Tensor | None = None) -> Tensor:
        """The loss of each sample, [B]; see ``Loss``."""
        if self.weighting != "likelihood":
            return super().__call__(model, x0, t, eps, cond=cond)
        sde = model.sde
        error = model(sde.perturb(x0, t, eps), t, cond=cond).eps - eps
        scale = 0.5 * (sde.t_max - sde.t_min) * log_snr_rate(sde, t) / math.log(2)
        return scale * error.square().flatten(1).mean(1).double()


def log_snr_rate(sde: SDE, t: Tensor) -> Tensor:
    """-d lambda / dt = g^2 / sigma^2, float64 [B]."""
    return sde.diffusion_sq(t) / (2 * sde.log_sigma(t)).exp()
