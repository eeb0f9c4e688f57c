"""Schemes of drawing training times: uniformly, spread over the batch, or where the loss is large."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor

from runtime.registry import choices_message

TimeSampling = Literal["uniform", "low_discrepancy", "importance"]


def check_time_sampling(name: str) -> None:
    """Refuse an unknown name.

    Raises:
        ValueError: The message lists the choices.
    """
    if name not in get_args(TimeSampling):
        raise ValueError(choices_message("time sampling", name, sorted(get_args(TimeSampling))))


@dataclass(frozen=True)
class TimeDraw:
    """Training times, and what a loss at each of them counts so that the mean is that over uniform times.

    Attributes:
        t: Times, float64 [B].
        weight: p_uniform(t) / p(t), float64 [B].
    """

    t: Float[Tensor, " batch"]
    weight: Float[Tensor, " batch"]


def spread(u: Float[Tensor, " batch"]) -> Float[Tensor, " batch"]:
    """u_i = (u_0 + i / B) mod 1: each uniform, together evenly spread (Kingma et al. 2021, Appendix I.1).

    Args:
        u: Independent uniform draws in [0, 1), [B]; the first is used.
    """
    return (u[:1] + torch.arange(len(u), dtype=u.dtype, device=u.device) / len(u)) % 1.0


class LossHistory:
    """Draws rows of a table where the loss is large: p_t proportional to sqrt(E[L_t^2]).

    (Nichol & Dhariwal 2021, Eq. 18.) The mean is over the last ``length`` losses of a row; until each row has as many,
    rows are drawn uniformly. A small uniform share keeps weights bounded.

    Args:
        num_rows: Rows of the table.
        length: Losses that are remembered of each row; Nichol & Dhariwal take 10.
        uniform_share: The part drawn uniformly, in (0, 1].
    """

    def __init__(self, num_rows: int, *, length: int = 10, uniform_share: float = 1e-3) -> None:
        self.num_rows, self.uniform_share = num_rows, uniform_share
        self.values = torch.zeros(num_rows, length, dtype=torch.float64)
        self.counts = torch.zeros(num_rows, dtype=torch.int64)

    @property
    def full(self) -> bool:
        """True if each row has its ``length`` losses."""
        return bool((self.counts >= self.values.shape[1]).all())

    def probabilities(self) -> Float[Tensor, " rows"]:
        """p of each row; they sum to 1."""
        uniform = torch.full((self.num_rows,), 1 / self.num_rows, dtype=torch.float64)
        if not self.full:
            return uniform
        magnitude = self.values.square().mean(1).sqrt()
        total = float(magnitude.sum())
        if total == 0:
            return uniform
        return (1 - self.uniform_share) * magnitude / total + self.uniform_share * uniform

    def draw(self, u: Float[Tensor, " batch"]) -> tuple[Int[Tensor, " batch"], Float[Tensor, " batch"]]:
        """Rows by the inverse of the cumulative probabilities, and their weights 1 / (num_rows p).

        Args:
            u: Uniform draws in [0, 1), [B].
        """
        p = self.probabilities()
        rows = torch.searchsorted(p.cumsum(0), u.double().cpu(), right=True).clamp(max=self.num_rows - 1)
        return rows, 1 / (self.num_rows * p[rows])

    def update(self, rows: Int[Tensor, " batch"], losses: Float[Tensor, " batch"]) -> None:
        """Take in losses; each row forgets its oldest one.

        Args:
            rows: Rows, [B].
            losses: Their losses, [B]; those that are not finite are left out.
        """
        length = self.values.shape[1]
        for row, loss in zip(rows.tolist(), losses.detach().double().cpu(), strict=True):
            if bool(torch.isfinite(loss)):
                self.values[row, int(self.counts[row]) % length] = loss
                self.counts[row] += 1
