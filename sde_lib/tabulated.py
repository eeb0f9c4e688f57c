"""A table of noise levels as a continuous SDE: DDPM is the VP-SDE, and NCSN the VE-SDE, on such a grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor
from torch.nn import functional as F

from runtime.options import whole_number

from .base import SDE, PerSample
from .inverse import invert_falling

Table = Sequence[float] | np.ndarray | Tensor


def _rows(num_steps: int) -> int:
    return whole_number("num_steps of a table", num_steps, least=2, fix="Ho et al. take 1000")


def ddpm_betas(num_steps: int = 1000, *, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tensor:
    """beta rising linearly over the steps (Ho et al. 2020, Section 4), float64 [num_steps]."""
    num_steps = _rows(num_steps)
    return torch.linspace(beta_start, beta_end, num_steps, dtype=torch.float64)


def cosine_betas(num_steps: int = 1000, *, s: float = 0.008, max_beta: float = 0.999) -> Tensor:
    """beta_i = min(1 - alpha_bar(i / N) / alpha_bar((i - 1) / N), max_beta) (Nichol & Dhariwal 2021, Eq. 17), [N]."""
    num_steps = _rows(num_steps)
    phase = (torch.arange(num_steps + 1, dtype=torch.float64) / num_steps + s) / (1 + s) * math.pi / 2
    alpha_bar = torch.cos(phase).square()
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=max_beta)


def _as_vector(name: str, values: Table) -> Tensor:
    table = torch.as_tensor(values, dtype=torch.float64).detach().cpu().clone()
    if table.ndim != 1 or len(table) < 2:
        raise ValueError(f"{name} must be a vector of at least 2 numbers, got shape {list(table.shape)}; pass a list")
    return table


class Tabulated(SDE):
    """A continuous SDE that is exact on a published table, at t = (i + 1) / N for row i of N.

    Between its rows lambda = log-SNR is interpolated by a monotone cubic (Fritsch & Carlson 1980) in t; below the first
    row sigma^2 is proportional to t, so that t = 0 is the data. alpha and sigma follow from lambda and the family.
    Times within rounding of a row, 8 eps of their dtype, are taken as the row.

    Args:
        log_snr: lambda of each row, falling, length N >= 2.
        family: "vp" for alpha^2 + sigma^2 = 1, "ve" for alpha = 1.

    Raises:
        ValueError: If the table is not a falling vector of finite numbers, or the family is unknown.
    """

    def __init__(self, log_snr: Table, *, family: Literal["vp", "ve"]) -> None:
        table = _as_vector("log_snr", log_snr)
        if family not in ("vp", "ve"):
            raise ValueError(f"family must be 'vp' or 've', got {family!r}; choose one of the two")
        if not bool(torch.isfinite(table).all()) or bool((table.diff() >= 0).any()):
            raise ValueError("log_snr must be finite and fall from row to row; sort the noise levels, and drop repeats")
        self.family = family
        self.table_size = self._num_rows = len(table)
        self.t_min = 1 / len(table)
        self.log_snr_table = table
        self.prior_std = 1.0 if family == "vp" else math.exp(-0.5 * float(table[-1]))
        rows = np.arange(1, len(table) + 1, dtype=np.float64)
        self._cubic = torch.from_numpy(np.ascontiguousarray(PchipInterpolator(rows, table.numpy()).c))
        # with the data, t = 0, as row 0
        self._rows = torch.stack(self._columns(torch.cat([torch.tensor([math.inf], dtype=torch.float64), table])))

    @classmethod
    def from_betas(cls, betas: Table) -> Tabulated:
        """The VP table alpha_bar_i = prod (1 - beta_j) (Ho et al. 2020, Section 2).

        Args:
            betas: Each in (0, 1), length N.

        Raises:
            ValueError: If a beta is outside (0, 1).
        """
        table = _as_vector("betas", betas)
        if bool(((table <= 0) | (table >= 1)).any()):
            raise ValueError("betas must lie strictly between 0 and 1; clip them, as Improved DDPM does at 0.999")
        log_alpha_bar = torch.log1p(-table).cumsum(0)
        return cls(log_alpha_bar - torch.log(-torch.expm1(log_alpha_bar)), family="vp")

    @classmethod
    def from_sigmas(cls, sigmas: Table) -> Tabulated:
        """The VE table of NCSN's noise levels (Song & Ermon 2019), in either order.

        Args:
            sigmas: Positive and distinct, length N.

        Raises:
            ValueError: If a level is not positive, or two are equal.
        """
        table = _as_vector("sigmas", sigmas).sort().values
        if bool((table <= 0).any()):
            raise ValueError(f"sigmas must be positive, got {float(table[0])}; drop the zero, it is t = 0")
        return cls(-2 * table.log(), family="ve")

    @classmethod
    def ddpm(cls, *, num_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> Tabulated:
        """Ho et al.'s linear table: alpha_bar_1000 = 4.0358e-5."""
        return cls.from_betas(ddpm_betas(num_steps, beta_start=beta_start, beta_end=beta_end))

    @classmethod
    def improved_ddpm(cls, *, num_steps: int = 1000, s: float = 0.008, max_beta: float = 0.999) -> Tabulated:
        """Nichol & Dhariwal's cosine table."""
        return cls.from_betas(cosine_betas(num_steps, s=s, max_beta=max_beta))

    @classmethod
    def ncsn(cls, *, num_steps: int = 232, sigma_min: float = 0.01, sigma_max: float = 50.0) -> Tabulated:
        """A geometric sequence of noise levels, by default the 232 of Song & Ermon 2020 for CIFAR-10.

        Song & Ermon 2019, Section 5, have 10 levels from 1 to 0.01: at sigma 1 data in [-1, 1] can still be seen.
        """
        if not 0 < sigma_min < sigma_max:
            raise ValueError(f"NCSN needs 0 < sigma_min < sigma_max, got {sigma_min} and {sigma_max}; try 0.01 and 50")
        ends = math.log(sigma_min), math.log(sigma_max)
        return cls.from_sigmas(torch.linspace(*ends, _rows(num_steps), dtype=torch.float64).exp())

    def _at(self, t: Tensor, columns: int | slice) -> Any:
        """Some of ``_columns`` at t, which for rows of the table are looked up, as samplers ask for them."""
        row = t.double() * self._num_rows
        nearest = row.round()
        # times of a grid are mostly the row's own to the last digit; few operations, since it is asked for at each step
        if not t.requires_grad and torch.equal(nearest / self._num_rows, t.double()):
            return self._rows.to(t.device)[columns, nearest.long()]
        # relative, so that no time above 0 is taken as 0
        is_row = (row - nearest).abs() <= 8 * torch.finfo(t.dtype).eps * row
        if not t.requires_grad and bool(is_row.all()):
            return self._rows.to(t.device)[columns, nearest.long()]
        # keeps the gradient: only the value moves
        row = row + torch.where(is_row, nearest - row, 0.0).detach()
        return self._columns(self._interpolate(row))[columns]

    def _columns(self, log_snr: Tensor) -> tuple[Tensor, ...]:
        """log-SNR, log alpha, log sigma, alpha and sigma."""
        if self.family == "ve":
            log_alpha, log_sigma = torch.zeros_like(log_snr), -0.5 * log_snr
        else:
            log_alpha, log_sigma = 0.5 * F.logsigmoid(log_snr), 0.5 * F.logsigmoid(-log_snr)
        return log_snr, log_alpha, log_sigma, log_alpha.exp(), log_sigma.exp()

    def _interpolate(self, row: Tensor) -> Tensor:
        """lambda between rows by the cubic, below the first one by what sigma^2 is there."""
        cubic = self._cubic.to(row.device)
        cell = (row.detach().ceil() - 2).clamp(0, self._num_rows - 2).long()
        inside = row.clamp(min=1.0) - (cell + 1)
        c3, c2, c1, c0 = cubic[:, cell]
        on_table = ((c3 * inside + c2) * inside + c1) * inside + c0
        # the cubic reaches the upper row by rounding; the table itself is what was promised
        exact = self.log_snr_table.to(row.device)[(row.detach().round() - 1).clamp(0, self._num_rows - 1).long()]
        on_table = torch.where(row == row.round(), on_table + (exact - on_table).detach(), on_table)
        return torch.where(row < 1, self._below_first_row(row), on_table)

    def _below_first_row(self, row: Tensor) -> Tensor:
        first, share = self.log_snr_table[0].to(row.device), row.clamp(max=1.0)
        if self.family == "ve":
            return first - share.log()
        first_var = torch.sigmoid(-first)
        return torch.log1p(-first_var * share) - (first_var * share).log()

    def __repr__(self) -> str:
        """Family and number of rows."""
        return f"{type(self).__name__}(family={self.family!r}, table_size={self.table_size})"

    def log_snr(self, t: PerSample) -> PerSample:
        """lambda(t): the table's value at a row, a monotone cubic between rows."""
        return self._at(t, 0)

    def log_alpha(self, t: PerSample) -> PerSample:
        """1/2 log sigmoid(lambda) for "vp", 0 for "ve"."""
        return self._at(t, 1)

    def log_sigma(self, t: PerSample) -> PerSample:
        """1/2 log sigmoid(-lambda) for "vp", -lambda / 2 for "ve"."""
        return self._at(t, 2)

    def alpha_sigma(self, t: PerSample) -> tuple[PerSample, PerSample]:
        """alpha(t) and sigma(t), from one look at the table."""
        alpha, sigma = self._at(t, slice(3, 5))
        return alpha, sigma

    def time_from_log_snr(self, log_snr: PerSample) -> PerSample:
        """The t in [0, 1] at which lambda(t) is ``log_snr``; out of reach, the nearer end."""
        log_snr = log_snr.double()
        table, cubic = self.log_snr_table.to(log_snr.device), self._cubic.to(log_snr.device)
        cell = (torch.searchsorted(-table, -log_snr.contiguous(), right=True) - 1).clamp(0, self._num_rows - 2)
        c3, c2, c1, c0 = cubic[:, cell]
        start = ((c0 - log_snr) / (c0 - table[cell + 1])).clamp(0.0, 1.0)

        def in_cell(u: Tensor) -> tuple[Tensor, Tensor]:
            return ((c3 * u + c2) * u + c1) * u + c0, (3 * c3 * u + 2 * c2) * u + c1

        inside = invert_falling(in_cell, log_snr, start)
        row = cell + 1 + inside
        nearest = row.round()
        on_row = table[(nearest.long() - 1).clamp(0, self._num_rows - 1)] == log_snr
        # below the first row sigma^2 is proportional to the row
        ve = self.family == "ve"
        below_first = (table[0] - log_snr).exp() if ve else torch.sigmoid(-log_snr) / torch.sigmoid(-table[0])
        row = torch.where(log_snr > table[0], below_first, torch.where(on_row, nearest, row))
        return row.clamp(max=self._num_rows) / self._num_rows

    def time_from_sigma(self, sigma: PerSample) -> PerSample:
        """The t in [0, 1] at which sigma(t) is ``sigma``, through lambda; out of reach, the nearer end."""
        sigma = sigma.double() if self.family == "ve" else sigma.double().clamp(max=1.0)
        log_alpha_sq = 0.0 if self.family == "ve" else torch.log1p(-sigma) + torch.log1p(sigma)
        row = self.time_from_log_snr(log_alpha_sq - 2 * sigma.log()) * self._num_rows
        nearest = row.round()
        # sigma has been rounded: give the row itself
        is_row = (row - nearest).abs() <= 16 * torch.finfo(torch.float64).eps * row
        return torch.where(is_row, nearest, row) / self._num_rows

    def _off_zero(self, t: PerSample) -> PerSample:
        # lambda is infinite at t = 0, f and g^2 are not: they are constant this close to it
        return t.double().clamp(min=1e-9 * self.t_min)

    def drift_coeff(self, t: PerSample) -> PerSample:
        """f = d log alpha / dt; at t = 0 the limit from above."""
        return super().drift_coeff(self._off_zero(t))

    def diffusion_sq(self, t: PerSample) -> PerSample:
        """g^2 = -sigma^2 d lambda / dt; at t = 0 the limit from above."""
        return super().diffusion_sq(self._off_zero(t))
