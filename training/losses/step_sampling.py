"""Time samplers: times drawn uniformly, spread over the batch, where the loss is large, or in the middle."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from runtime.registry import choices_message
from sde_lib import SDE

StepSampling = Literal["uniform", "low_discrepancy", "importance", "logit_normal"]


def check_step_sampling(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: The message lists the choices.
    """
    if name not in get_args(StepSampling):
        raise ValueError(choices_message("step sampling", name, sorted(get_args(StepSampling))))


@dataclass(frozen=True)
class TimeDraw:
    """Training times, and weights under which the mean loss is the one that is minimised.

    Attributes:
        t: Times, float64 [B].
        weight: p_uniform(t) / p(t), or 1 for ``MiddleTimes``, float64 [B].
    """

    t: Float[Tensor, " batch"]
    weight: Float[Tensor, " batch"]


def spread(u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """u_i = (u_0 + i / B) mod 1: each uniform, together evenly spread (Kingma et al. 2021, Appendix I.1).

    Args:
        u: Independent uniform draws in [0, 1), [B]; the first is used.
    """
    return (u[:1] + torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)) % 1.0


class TimeSampler(ABC):
    """A sampler of training times, with their weights and what it remembers."""

    @abstractmethod
    def draw(self, u: Float[Tensor, " batch"]) -> TimeDraw:
        """Training times from independent uniform draws in [0, 1), [B]."""

    def observe(self, t: Float[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """Learn from the losses of a step which times matter; most samplers have nothing to learn."""
        return

    def memory(self) -> dict[str, Tensor]:
        """Tensors, by name, that ``observe`` changes in place; checkpoints hold them."""
        return {}


class UniformTimes(TimeSampler):
    """Times of weight 1, as a loss spreads them.

    Args:
        times: Times of uniform draws in [0, 1), [B], as ``Loss.times`` gives them.
        low_discrepancy: Spread the draws evenly over the batch; see ``spread``.
    """

    def __init__(self, times: Callable[[Tensor], Tensor], *, low_discrepancy: bool = False) -> None:
        self._times, self._low_discrepancy = times, low_discrepancy

    def draw(self, u: Float[Tensor, " batch"]) -> TimeDraw:
        """Times of the draws, or of the draws spread evenly."""
        t = self._times(spread(u) if self._low_discrepancy else u)
        return TimeDraw(t, torch.ones_like(t))


class MiddleTimes(TimeSampler):
    """Times whose logit is N(0, 1), spread evenly over the batch: more of the middle and less of both ends.

    Their weight is 1, so that the loss is another than that of uniform times, by the weight that p(t) is; its minimum
    is the same for a network that can be exact.

    Args:
        times: Times of uniform draws in [0, 1), [B], as ``Loss.times`` gives them.

    Source: Esser et al. 2024, Section 3.1 (rf/lognorm(0.00, 1.00)).
    """

    def __init__(self, times: Callable[[Tensor], Tensor]) -> None:
        self._times = times

    def draw(self, u: Float[Tensor, " batch"]) -> TimeDraw:
        """Times of ``sigmoid(Phi^-1(u))`` for spread draws u."""
        t = self._times(torch.special.ndtri(spread(u.double())).sigmoid())
        return TimeDraw(t, torch.ones_like(t))


class LogSNRTimes(TimeSampler):
    """Times uniform in log-SNR, that is, p(t) proportional to g^2 / sigma^2 (Song et al. 2021b, Section 5.1).

    Args:
        sde: The SDE.
    """

    def __init__(self, sde: SDE) -> None:
        self._sde = sde

    def draw(self, u: Float[Tensor, " batch"]) -> TimeDraw:
        """Times spread evenly in log-SNR, and their weights."""
        sde = self._sde
        high, low = sde.log_snr(torch.tensor([sde.t_min, sde.t_max], dtype=torch.float64)).tolist()
        t = sde.time_from_log_snr(high + spread(u.double()) * (low - high)).clamp(sde.t_min, sde.t_max)
        return TimeDraw(t, (high - low) / (log_snr_rate(sde, t) * (sde.t_max - sde.t_min)))


def log_snr_rate(sde: SDE, t: Tensor) -> Tensor:
    """-d lambda / dt = g^2 / sigma^2, float64 [B]."""
    return sde.diffusion_sq(t) / (2 * sde.log_sigma(t)).exp()


class LossHistory(TimeSampler):
    """Timesteps of a table, drawn where the loss is large: p_t proportional to sqrt(E[L_t^2]).

    (Nichol & Dhariwal 2021, Eq. 18.) The mean is over the last ``length`` losses of a timestep; until each has as many,
    timesteps are drawn uniformly. A small fraction drawn uniformly keeps weights bounded.

    Args:
        num_steps: Timesteps N of the table; timestep k is at t = (k + 1) / N.
        length: Losses that are remembered of each timestep; Nichol & Dhariwal take 10.
        uniform_fraction: The fraction of the timesteps that is drawn uniformly, in (0, 1].
    """

    def __init__(self, num_steps: int, *, length: int = 10, uniform_fraction: float = 1e-3) -> None:
        self.num_steps, self.uniform_fraction = num_steps, uniform_fraction
        self.values = torch.zeros(num_steps, length, dtype=torch.float64)
        self.counts = torch.zeros(num_steps, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """True if each timestep has its ``length`` losses."""
        return bool((self.counts >= self.values.shape[1]).all())

    def probabilities(self) -> Float[Tensor, " steps"]:
        """p of each timestep; they sum to 1."""
        uniform = torch.full((self.num_steps,), 1 / self.num_steps, dtype=torch.float64)
        if not self.full:
            return uniform
        magnitude = self.values.square().mean(1).sqrt()
        total = float(magnitude.sum())
        if total == 0:
            return uniform
        return (1 - self.uniform_fraction) * magnitude / total + self.uniform_fraction * uniform

    def draw(self, u: Float[Tensor, " batch"]) -> TimeDraw:
        """Timesteps by the inverse of the cumulative probabilities, and their weights 1 / (N p)."""
        p = self.probabilities()
        steps = torch.searchsorted(p.cumsum(0), u.double().cpu(), right=True).clamp(max=self.num_steps - 1)
        return TimeDraw((steps.double() + 1) / self.num_steps, 1 / (self.num_steps * p[steps]))

    def observe(self, t: Float[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """Take in losses; each timestep forgets its oldest one, and losses that are not finite are left out."""
        length = self.values.shape[1]
        steps: Int[Tensor, " batch"] = (t * self.num_steps).round().long() - 1
        for step, loss in zip(steps.tolist(), losses.detach().double().cpu(), strict=True):
            if bool(torch.isfinite(loss)):
                self.values[step, int(self.counts[step]) % length] = loss
                self.counts[step] += 1

    def memory(self) -> dict[str, Tensor]:
        """The losses, and how many there were."""
        return {"values": self.values, "counts": self.counts}
