"""Time grids: where a sampler or a bound stops between noise and data. Each is a falling float64 vector."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from runtime.options import whole_number
from runtime.registry import Registry, choices_message

from .base import SDE

GRIDS: Registry[Tensor] = Registry("grid")
register_grid, available_grids = GRIDS.register, GRIDS.names


def make_grid(grid: str | Tensor, sde: SDE, num_steps: int | None) -> Tensor:
    """Times t_0 > t_1 > ... > t_n for ``num_steps`` steps, from ``sde.t_max`` to 0; a tensor is taken as it is.

    Args:
        grid: One of ``available_grids()``, or the times themselves, which ``check_grid_choice`` let pass.
        sde: The SDE, for grids that are placed by noise level or by table row.
        num_steps: Number of steps n, at least 1; unused with a tensor.

    Returns:
        float64 [num_steps + 1].

    Raises:
        ValueError: If the name is unknown, or num_steps does not fit.
    """
    if isinstance(grid, Tensor):
        return grid
    num_steps = whole_number("num_steps", num_steps, fix="pass 1 or more")
    return check_grid(GRIDS.make(grid, sde=sde, num_steps=num_steps))


def check_grid(grid: Tensor) -> Tensor:
    """Refuse what is no grid: a vector of at least two times in [0, 1], strictly falling.

    Args:
        grid: Times, [n + 1].

    Returns:
        The grid as float64 on the CPU.

    Raises:
        ValueError: In one line, with what is wrong.
    """
    grid = torch.as_tensor(grid).detach().cpu().double()
    if grid.ndim != 1 or len(grid) < 2:
        raise ValueError(f"a grid must be a vector of at least 2 times, got shape {list(grid.shape)}; add an end point")
    if not bool(((grid >= 0) & (grid <= 1)).all()):
        raise ValueError(
            f"grid times must lie in [0, 1], got {float(grid.min()):.6g} to {float(grid.max()):.6g}; rescale"
        )
    if bool((grid.diff() >= 0).any()):
        raise ValueError(
            "grid times must fall strictly from noise to data; sort them in descending order, drop repeats"
        )
    return grid


def check_grid_choice(
    grid: str | Tensor, num_steps: int | None, *, label: str = "num_steps", fix: str = "pass 1 or more"
) -> tuple[str | Tensor, int | None]:
    """Check a choice of times: a name with a number of steps, or times themselves.

    Args:
        grid: Name of a time grid (``available_grids()``), or a falling tensor of times, [num_steps + 1].
        num_steps: Number of steps; None is for a tensor alone.
        label: Name of ``num_steps`` in its message.
        fix: Advice at the end of that message.

    Returns:
        Both, a tensor as float64 on the CPU.

    Raises:
        ValueError: If one is unknown or out of range, or they disagree.
    """
    if isinstance(grid, Tensor):
        grid = check_grid(grid).clone()
        if num_steps not in (None, len(grid) - 1):
            raise ValueError(f"the grid has {len(grid) - 1} steps, got num_steps = {num_steps}; leave num_steps out")
        return grid, num_steps
    if not isinstance(grid, str):
        raise ValueError(
            f"grid must be a name or a falling torch tensor of times, got {type(grid).__name__}; "
            "pass torch.tensor(grid, dtype=torch.float64)"
        )
    num_steps = whole_number(label, num_steps, fix=fix)
    if grid not in available_grids():
        raise ValueError(choices_message("grid", grid, available_grids()))
    return grid, num_steps


@torch.no_grad()
def last_noisy_time(sde: SDE, t_end: float | None = None) -> float:
    """The time next to the data at which a network is asked.

    Args:
        sde: The SDE.
        t_end: Another one, in [0, 1); None for 0 where noise is left there, else ``sde.t_min``.

    Raises:
        ValueError: If there is no noise at ``t_end``, or it is not below ``sde.t_max``.
    """
    noise_at_zero = float(sde.sigma(torch.zeros(1, dtype=torch.float64))) > 0
    end = (0.0 if noise_at_zero else sde.t_min) if t_end is None else t_end
    if end >= sde.t_max or (end == 0 and not noise_at_zero):
        raise ValueError(
            f"t_end must be below t_max = {sde.t_max:.6g} and leave noise, got {end:.6g}; try {sde.t_min:.6g}"
        )
    return end


def _to_zero(times: Tensor) -> Tensor:
    """Append t = 0 unless the times already end there."""
    times = torch.as_tensor(times, dtype=torch.float64)
    return times if float(times[-1]) == 0 else torch.cat([times, torch.zeros(1, dtype=torch.float64)])


def _even_steps(
    sde: SDE, num_steps: int, level: Callable[[Tensor], Tensor], log_snr: Callable[[Tensor], Tensor]
) -> Tensor:
    """Equal steps in a level of log-SNR, whose inverse is ``log_snr``, from t_max to the last noise, then t = 0."""
    end = last_noisy_time(sde)
    first, last = level(sde.log_snr(torch.tensor([sde.t_max, end], dtype=torch.float64)))
    share = torch.linspace(0, 1, num_steps + (end == 0), dtype=torch.float64)
    times = sde.time_from_log_snr(log_snr(first + share * (last - first)))
    times[0] = sde.t_max
    if len(times) > 1:
        times[-1] = end
    return _to_zero(times)


@register_grid("uniform")
def uniform_grid(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in t. With num_steps = N on a table of N rows this is DDPM's own grid."""
    return torch.linspace(num_steps, 0, num_steps + 1, dtype=torch.float64) / num_steps * sde.t_max


@register_grid("quadratic")
def quadratic_grid(sde: SDE, num_steps: int) -> Tensor:
    """t_i proportional to (n - i)^2: finer towards the data (Song et al. 2020 (DDIM), Appendix D.2)."""
    return uniform_grid(sde, num_steps).div(sde.t_max).square().mul(sde.t_max)


def _table_size(sde: SDE, num_steps: int) -> int:
    size = sde.table_size or 1000
    if num_steps > size:
        raise ValueError(f"num_steps must be at most the table's {size} rows, got {num_steps}; lower num_steps")
    return size


@register_grid("trailing")
def trailing_grid(sde: SDE, num_steps: int) -> Tensor:
    """Every (N/n)-th row counted from the last one (Lin et al. 2024, Table 2); N = 1000 for an SDE without a table."""
    size = _table_size(sde, num_steps)
    # numpy's arange and its rounding of halves, because published samplers choose their rows by them
    rows = torch.from_numpy(np.arange(size, 0, -size / num_steps)[:num_steps].round())
    return _to_zero(rows / size * sde.t_max)


@register_grid("leading")
def leading_grid(sde: SDE, num_steps: int) -> Tensor:
    """Every (N//n)-th row counted from the first one, as DDIM's code does. It does not start at the last row."""
    size = _table_size(sde, num_steps)
    rows = torch.arange(num_steps - 1, -1, -1, dtype=torch.float64) * (size // num_steps) + 1
    return _to_zero(rows / size * sde.t_max)


@register_grid("karras")
def karras_grid(sde: SDE, num_steps: int, rho: float = 7.0) -> Tensor:
    """Equal steps in (sigma / alpha)^(1/rho) (Karras et al. 2022, Eq. 5), then t = 0."""
    return _even_steps(
        sde, num_steps, lambda log_snr: torch.exp(-0.5 * log_snr) ** (1 / rho), lambda level: -2 * rho * level.log()
    )


@register_grid("log_snr")
def log_snr_grid(sde: SDE, num_steps: int) -> Tensor:
    """Equal steps in log-SNR (Lu et al. 2022a, Section 3.3), then t = 0."""
    return _even_steps(sde, num_steps, lambda log_snr: log_snr, lambda level: level)
