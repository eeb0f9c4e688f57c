"""Training losses: functions of a model, data, times and noise."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from models import Prediction, ScoreModel
from sde_lib import SDE, Registry, choices_message, expand_like

Weighting = Literal["eps", "x0", "v", "edm"]


def weighted_error(
    weighting: str, prediction: Prediction, x0: Tensor, eps: Tensor, *, alpha: Tensor, data_std: float
) -> Tensor:
    """Mean squared error per sample, [B], of the quantity whose error has weight 1.

    Args:
        weighting: "eps": |eps error|^2, which is L_simple (Ho et al. 2020, Eq. 14) and sigma^2-weighted denoising score
            matching (Song et al. 2021, Eq. 7); "x0": |x0 error|^2; "v": |v error|^2 with v = alpha eps - sigma x0;
            "edm": (s^2 + d^2) / (s d)^2 |x0 error|^2 with s = sigma / alpha (Karras et al. 2022, Section 5).
        prediction: The model's answer.
        x0: Data, [B, ...].
        eps: The noise that was added, [B, ...].
        alpha: Signal scales, [B].
        data_std: d, for "edm".

    Raises:
        ValueError: If the weighting is unknown.
    """
    sigma = prediction.sigma
    if weighting == "eps":
        error = prediction.eps - eps
    elif weighting == "x0":
        error = prediction.x0 - x0
    elif weighting == "v":
        error = expand_like(alpha, eps) * (prediction.eps - eps) - expand_like(sigma, x0) * (prediction.x0 - x0)
    elif weighting == "edm":
        s = sigma / alpha
        error = expand_like((s.square() + data_std**2).sqrt() / (s * data_std), x0) * (prediction.x0 - x0)
    else:
        raise ValueError(choices_message("weighting", weighting, ["auto", *get_args(Weighting)]))
    return error.square().flatten(1).mean(1)


class Loss(ABC):
    """A loss: how times are drawn, and how errors are weighted.

    Args:
        weighting: See ``weighted_error``.
        data_std: Standard deviation of the data, for the "edm" weighting.

    Raises:
        ValueError: If the weighting is unknown.
    """

    def __init__(self, *, weighting: str = "eps", data_std: float = 0.5) -> None:
        if weighting not in get_args(Weighting):
            raise ValueError(choices_message("weighting", weighting, ["auto", *get_args(Weighting)]))
        if not 0 < data_std < float("inf"):
            raise ValueError(f"data_std must be above 0, got {data_std}; pass the standard deviation of the data")
        self.weighting = weighting
        self.data_std = data_std

    @abstractmethod
    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """Training times from uniform draws.

        Args:
            sde: The SDE.
            u: Uniform draws in [0, 1), [B].

        Returns:
            Times, float64 [B].
        """

    def __call__(self, model: ScoreModel, x0: Tensor, t: Tensor, eps: Tensor, *, cond: Tensor | None = None) -> Tensor:
        """The loss of each sample, [B].

        Args:
            model: The model to train.
            x0: Data, [B, ...].
            t: Times from ``times``, [B].
            eps: Standard normal noise, [B, ...].
            cond: Condition, or None.
        """
        prediction = model(model.sde.perturb(x0, t, eps), t, cond=cond)
        alpha = model.sde.alpha(t)
        return weighted_error(self.weighting, prediction, x0, eps, alpha=alpha, data_std=self.data_std)


_LOSSES: Registry[Loss] = Registry("loss")
register_loss = _LOSSES.register


@register_loss("ddpm")
class DDPMLoss(Loss):
    """L_simple: t uniform on the rows of the SDE's table (Ho et al. 2020, Eq. 14)."""

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """(row + 1) / N for a uniform row."""
        if sde.table_size is None:
            raise ValueError("loss 'ddpm' needs an SDE with a table, such as 'ddpm'; use loss 'dsm'")
        return ((u.double() * sde.table_size).floor().clamp(max=sde.table_size - 1) + 1) / sde.table_size


@register_loss("dsm")
class DenoisingScoreMatching(Loss):
    """Denoising score matching with t uniform on [t_min, t_max] (Song et al. 2021, Eq. 7)."""

    def times(self, sde: SDE, u: Tensor) -> Tensor:
        """t_min + u (t_max - t_min)."""
        return sde.t_min + u.double() * (sde.t_max - sde.t_min)


def make_loss(name: str, *, sde: SDE, parameterization: str, **kwargs: Any) -> Loss:
    """Build a loss by name.

    Args:
        name: "ddpm", "dsm", a registered name, or "auto": "ddpm" where the SDE has a table.
        sde: The SDE, for "auto".
        parameterization: The model's, for the "auto" weighting: "edm" for "edm", else "eps".
        **kwargs: Options of the loss, ``weighting`` and ``data_std``.

    Raises:
        ValueError: If a name is unknown or does not fit the SDE.
    """
    if name == "auto":
        name = "dsm" if sde.table_size is None else "ddpm"
    if kwargs.get("weighting") == "auto":
        kwargs["weighting"] = "edm" if parameterization == "edm" else "eps"
    loss = _LOSSES.make(name, **kwargs)
    loss.times(sde, torch.zeros(1))
    return loss


def learning_rate_factor(step: int, warmup_steps: int) -> float:
    """min(1, (step + 1) / warmup_steps): the rate rises linearly and then stays.

    Args:
        step: Number of the step, from 0.
        warmup_steps: Length of the warm-up; 0 for none.
    """
    return 1.0 if warmup_steps <= 0 else min(1.0, (step + 1) / warmup_steps)


def ema_decay_at(num_updates: int, decay: float) -> float:
    """min(decay, (1 + n) / (10 + n)), so that the average of a short run is not its beginning.

    Args:
        num_updates: Number n of updates so far.
        decay: The decay in the long run, in [0, 1).
    """
    assert math.isfinite(decay)
    return min(decay, (1 + num_updates) / (10 + num_updates))
