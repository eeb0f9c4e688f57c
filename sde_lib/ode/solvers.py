"""Solvers of dy/du = slope(u, y), by name: Butcher tableaus, torchdiffeq, SciPy and torchode behind one call."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..shapes import combine

# the name of ``adams.solve_adams``, which alone gives each sample steps of its own without a package more
ADAMS = "adams"

# slope(u, y): u is float64, [] or, where each sample has its own, [B]; y and the answer are [B, ...]
Slope = Callable[[Tensor, Tensor], Tensor]
# solve(slope, y, start, end, rtol=..., atol=...): y at ``end``, which may lie on either side of ``start``
Solve = Callable[..., Tensor]


class NoProgressError(RuntimeError):
    """A solver cannot reach the tolerance asked for."""


@dataclass(frozen=True)
class Tableau:
    """An explicit Runge-Kutta method: y + h sum_i weights_i k_i, with

        k_i = slope(u + nodes_i h, y + h sum_{j<i} rows_ij k_j)

    (Hairer, Norsett & Wanner 1993, Section II.1). It costs one slope a node.

    Attributes:
        nodes: Where the slopes are taken, as shares of the step.
        rows: What each stage is made of, one row a node.
        weights: What the step is made of.
    """

    nodes: tuple[float, ...]
    rows: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]

    def step(self, slope: Slope, y: Tensor, start: float, end: float) -> Tensor:
        """One step.

        Args:
            slope: The equation.
            y: State at ``start``, [B, ...].
            start: Where the step starts.
            end: Where it ends.

        Returns:
            The state at ``end``, in the dtype of ``y``.
        """
        h = end - start
        slopes: list[Tensor] = []
        for node, row in zip(self.nodes, self.rows, strict=True):
            stage = combine((1.0, y), *((h * share, k) for share, k in zip(row, slopes, strict=True)))
            # start + h may miss the end in the last digit
            u = end if node == 1 else start + node * h
            slopes.append(slope(torch.tensor(u, dtype=torch.float64), stage))
        return combine((1.0, y), *((h * share, k) for share, k in zip(self.weights, slopes, strict=True)))


TABLEAUS: dict[str, Tableau] = {
    "euler": Tableau((0.0,), ((),), (1.0,)),
    "heun": Tableau((0.0, 1.0), ((), (1.0,)), (0.5, 0.5)),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0)),
    "rk4": Tableau((0.0, 0.5, 0.5, 1.0), ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


def _largest_rms(y: Tensor) -> Tensor:
    """The largest root mean square of a sample: an error norm in which no sample hides behind its batch mates."""
    return y.unsqueeze(1).flatten(1).square().mean(1).max().sqrt()


def _solve_torchdiffeq(
    method: str, slope: Slope, y: Tensor, start: float, end: float, *, rtol: float, atol: float
) -> Tensor:
    # imported where they are used: SciPy, which torchdiffeq imports too, takes half a second
    from torchdiffeq import odeint

    ends = torch.tensor([start, end], dtype=torch.float64, device=y.device)
    # without step_t, steps go past the end, where there may be no SDE, and interpolate back
    options = {"norm": _largest_rms, "step_t": ends[1:]}
    try:
        states: Any = odeint(slope, y, ends, rtol=rtol, atol=atol, method=method, options=options)
    except AssertionError as error:
        if not str(error).startswith(("underflow in dt", "non-finite values in state")):
            raise
        raise NoProgressError("the steps became too small") from error
    return states[-1]


def _solve_scipy(method: str, slope: Slope, y: Tensor, start: float, end: float, *, rtol: float, atol: float) -> Tensor:
    from scipy import integrate, sparse

    def function(u: float, flat: Any) -> Any:
        state = torch.from_numpy(flat).to(y.device).reshape(y.shape)
        return slope(torch.tensor(u, dtype=torch.float64), state).flatten().cpu().numpy()

    size = math.prod(y.shape[1:])
    options: dict[str, Any] = {}
    # samples do not mix: a Jacobian by differences then costs as many calls for a batch as for one sample
    if method in ("Radau", "BDF"):
        options["jac_sparsity"] = sparse.kron(sparse.eye(len(y)), sparse.csr_matrix([[1.0] * size] * size))
    elif method == "LSODA":
        options["lband"] = options["uband"] = size - 1
    # SciPy's norm is the root mean square over the whole batch: in the worst case all error is one sample's
    share = 1 / math.sqrt(len(y))
    solver = getattr(integrate, method)(
        function, start, y.flatten().cpu().numpy(), end, rtol=share * rtol, atol=share * atol, **options
    )
    # solve_ivp is this loop, and keeps every state
    while solver.status == "running":
        message = solver.step()
        if solver.status == "failed":
            raise NoProgressError(f"SciPy says: {message or 'failed'}")
    return torch.from_numpy(solver.y).to(y.device).reshape(y.shape)


def _solve_torchode(
    method: str, slope: Slope, y: Tensor, start: float, end: float, *, rtol: float, atol: float
) -> Tensor:
    # its annotations are none that type checkers know
    library: Any = importlib.import_module("torchode")

    def function(u: Tensor, flat: Tensor) -> Tensor:
        return slope(u, flat.reshape(y.shape)).reshape(flat.shape)

    term = library.ODETerm(function, with_stats=False)
    controller = library.IntegralController(atol=atol, rtol=rtol, term=term)
    # it keeps the tolerances in float32, where a small one is 0
    controller.atol, controller.rtol = (torch.tensor(v, dtype=torch.float64, device=y.device) for v in (atol, rtol))
    solver = library.AutoDiffAdjoint(getattr(library, method)(term=term), controller)
    starts, ends = (torch.full((len(y),), u, dtype=torch.float64, device=y.device) for u in (start, end))
    flat = y.reshape(len(y), -1)
    solution = solver.solve(library.InitialValueProblem(y0=flat, t_start=starts, t_end=ends))
    worst = int(solution.status.max())
    if worst != library.Status.SUCCESS.value:
        raise NoProgressError(f"torchode says: {library.Status(worst).name}")
    return solution.ys[:, -1].reshape(y.shape)


# torchdiffeq's fehlberg2 is left out: it takes a 512th of a first-order error for that of its second-order steps, and
# misses a tolerance of 1e-4 by a factor of hundreds
ADAPTIVE: dict[str, Solve] = {
    **{name: partial(_solve_torchdiffeq, name) for name in ("adaptive_heun", "bosh3", "dopri5", "dopri8")},
    **{
        f"scipy_{name.lower()}": partial(_solve_scipy, name)
        for name in ("RK45", "RK23", "DOP853", "LSODA", "Radau", "BDF")
    },
    **{f"torchode_{name.lower()}": partial(_solve_torchode, name) for name in ("Dopri5", "Tsit5", "Heun")},
}


def available_ode_solvers() -> list[str]:
    """Names of solvers; those of torchode need it installed."""
    return sorted([ADAMS, *TABLEAUS, *ADAPTIVE])


def check_installed(solver: str) -> None:
    """Refuse a solver whose package is missing.

    Raises:
        ValueError: In one line, with the command that installs it.
    """
    try:
        if solver.startswith("torchode_"):
            importlib.import_module("torchode")
    except ImportError:
        raise ValueError(
            f"solver {solver!r} needs torchode, which is not installed; pip install 'score-diffusion[ode]', "
            f"or use {ADAMS!r}"
        ) from None
