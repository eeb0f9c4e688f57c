"""The report of the proofs: every cell in ``docs/proofs.json``, and the page ``docs/proofs.md``, made of that."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from runtime.files import write_atomically

from .checked import Checked
from .entries import entries
from .gaussian import GaussianCell
from .mixture import CELLS_A_SIDE, SAME_POINTS, MixtureCell
from .oracles import PARAMETERIZATIONS, SDES
from .orders import FROM_NOISE, MIDDLE, TOLERANCE, Convergence
from .orders import STEPS as ORDER_STEPS
from .weak import STEPS as WEAK_STEPS
from .weak import WeakConvergence


class Proofs:
    """All that was found.

    Args:
        found: Results by (kind, SDE, sampler).
        num_points: Monte-Carlo draws a cell.
        seed: The seed.
    """

    def __init__(self, found: dict[tuple[str, str, str], Any], *, num_points: int, seed: int) -> None:
        self.num_points, self.seed = num_points, seed
        self.gaussian: dict[tuple[str, str], dict[str, GaussianCell]] = {}
        self.mixture: dict[tuple[str, str], MixtureCell] = {}
        self.orders: dict[str, list[Convergence]] = {}
        self.weak: dict[str, list[WeakConvergence]] = {}
        for (kind, sde, label), value in found.items():
            if kind in ("orders", "weak"):
                (self.orders if kind == "orders" else self.weak)[sde] = value
            else:
                (self.gaussian if kind == "gaussian" else self.mixture)[label, sde] = value

    def cells(self) -> Iterator[tuple[str, bool]]:
        """All cells with pass or fail: SDE x sampler x parameterization x distribution, and orders."""
        for (label, sde), cells in self.gaussian.items():
            for parameterization, cell in cells.items():
                yield f"{label} on {sde}, {parameterization}, Gaussian", cell.passed
        for (label, sde), cell in self.mixture.items():
            shared = all(checked.passed for checked in (cell.mean, cell.cov, cell.third, cell.distance))
            for parameterization, checked in cell.same.items():
                yield f"{label} on {sde}, {parameterization}, mixture", shared and checked.passed
        for sde, convergences in self.orders.items():
            for c in convergences:
                yield f"order of {c.solver.label} on {sde}, {c.distribution}", c.checked.passed
        for sde, weak in self.weak.items():
            for w in weak:
                yield f"weak order of {w.sampler.label} on {sde}, {w.distribution}", w.checked.passed

    @property
    def num_cells(self) -> int:
        """The number of cells."""
        return sum(1 for _ in self.cells())

    def failures(self) -> list[str]:
        """The cells that did not pass."""
        return [name for name, passed in self.cells() if not passed]


def write(proofs: Proofs, root: Path) -> None:
    """Write ``docs/proofs.json`` and ``docs/proofs.md``.

    Args:
        proofs: What was found.
        root: The folder that holds, or will hold, ``docs/``.
    """
    found = numbers(proofs)
    write_atomically(root / "docs" / "proofs.json", as_json(found).encode())
    write_atomically(root / "docs" / "proofs.md", page(found).encode())


def numbers(proofs: Proofs) -> dict[str, Any]:
    """Every cell's values and bounds, to four digits."""

    def pair(checked: Checked | None) -> list[float] | None:
        return None if checked is None else [float(f"{checked.value:.4g}"), float(f"{checked.bound:.4g}")]

    return {
        "num_points": proofs.num_points,
        "seed": proofs.seed,
        "cells": proofs.num_cells,
        "failures": proofs.failures(),
        "gaussian": [
            {"sampler": label, "sde": sde, "parameterization": name, "nfe": cell.nfe,
             "mean": pair(cell.mean), "cov": pair(cell.cov), "kl": pair(cell.kl), "formulas": pair(cell.formulas)}
            for (label, sde), cells in sorted(proofs.gaussian.items())
            for name, cell in cells.items()
        ],
        "mixture": [
            {"sampler": label, "sde": sde, "nfe": cell.nfe, "mean": pair(cell.mean), "cov": pair(cell.cov),
             "third": pair(cell.third), "distance": pair(cell.distance),
             "same": {name: pair(checked) for name, checked in cell.same.items()}}
            for (label, sde), cell in sorted(proofs.mixture.items())
        ],
        "orders": [
            {"solver": c.solver.label, "note": c.solver.note, "sde": sde, "distribution": c.distribution,
             "log_snr": list(c.solver.ends), "promised": c.promised, "measured": [round(m, 4) for m in c.measured],
             "errors": [float(f"{e:.4g}") for e in c.errors]}
            for sde, convergences in sorted(proofs.orders.items())
            for c in convergences
        ],
        "weak_orders": [
            {"sampler": w.sampler.label, "sde": sde, "distribution": w.distribution, "promised": 1,
             "measured": [round(m, 4) for m in w.measured], "errors": [float(f"{e:.4g}") for e in w.errors]}
            for sde, weak in sorted(proofs.weak.items())
            for w in weak
        ],
    }  # fmt: skip


def as_json(found: dict[str, Any]) -> str:
    """The text of ``docs/proofs.json``: JSON with one line a cell."""

    def value(of: Any) -> str:
        lines = ",\n".join(map(json.dumps, of)) if isinstance(of, list) else ""
        return f"[\n{lines}\n]" if lines else json.dumps(of)

    return "{\n" + ",\n".join(f"{json.dumps(key)}: {value(of)}" for key, of in found.items()) + "\n}\n"


_HEAD = """\
# Proofs of the samplers

Every sampler is run on distributions whose score is known in closed form, and what it draws is compared with the
truth: each sampler, on each of {num_sdes} SDEs ({sdes}), with each parameterization
({parameterizations}), on a Gaussian and on a mixture; and the orders of convergence.
{num_cells:,} cells. {verdict}

```sh
python -m proofs --num-points {num_points} --seed {seed}
```

writes this page and [proofs.json](proofs.json), which has the values and bounds of every cell, and exits with 1 if a
cell fails. `tests/proofs/test_proofs.py` asserts the same with fewer points.

## How a cell is judged

- **Bounds.** A sampler runs twice, the second time refined, mostly with twice the steps. If its order is p, the error
  left after that is the change between the two runs divided by 2^p − 1. The bound is 1.5 times this, to leave room for
  the next order, plus five standard errors where samples are drawn at random. A sampler that converges to something
  else, or more slowly than promised, fails.
- **Truth.** Samplers end by predicting x0 at s, the last time of the grid that has noise. The truth is therefore the
  law of E[x0 | x_s]. They start from x_T drawn from the data's own p(x_T), not from the prior.
- **Gaussian.** Two correlated coordinates. Most samplers map x_T and noise to x0 linearly, so that mean and covariance
  of what they draw are computed exactly, without drawing. Samplers whose steps depend on norms draw samples. Compared
  are the mean, the covariance and the KL divergence in nats. Langevin samplers are also compared with the recursions
  of mean and covariance that follow from the papers' formulas (`formulas`).
- **Mixture.** Two unequal correlated Gaussians in the plane, {num_points:,} points. Compared are the mean, the
  covariance and the third moment; the probabilities of {cells} cells that the true density makes equally likely
  (`distance`: root mean square of their relative errors; exact samples have {floor:.3f} on average); and what a
  network of each parameterization makes of {same} points with what the closed form makes of them, by the same noise
  (`same`).
- Networks are `NetworkScoreModel`s whose backbone gives the exact answer. Arithmetic is float64.

## Orders of convergence

Deterministic solvers are compared point by point with the exact solution of the probability-flow ODE. The order is
measured from {order_steps[1]} to {order_steps[2]} steps, equal in log-SNR, from {middle[0]:g} to {middle[1]:g}.
In rows marked ° the steps begin at {noise[0]:g}, or where the SDE begins, and end at {noise[1]:g}: the first step is
then taken in nearly pure noise, where its low order costs nothing. Columns give the smallest and largest order over
the SDEs. An order may be {tolerance:g} from the promised one. (The midpoint rule has order 2; on a Gaussian its leading
error vanishes.)
"""

_WEAK = """\
Samplers with noise have weak orders: errors of E cos(f x) and E sin(f x), f = 1 and 2, for a Gaussian and a mixture on
the line. They are computed by quadrature, without drawing, from {weak_steps[1]} to {weak_steps[2]} steps.
"""

_TIGHT = """\
## Tightest cells

For each sampler of the registry, the value nearest to its bound. Values that only show rounding (bounds of {rounding:g}
and below) are left out.
"""
# bounds up to this are those of rounding
_ROUNDING = 1e-9
_QUANTITIES = {
    "mean": "mean", "cov": "covariance", "kl": "KL", "formulas": "formulas", "third": "third moment",
    "distance": "distance",
}  # fmt: skip


def page(found: dict[str, Any]) -> str:
    """The text of ``docs/proofs.md``.

    Args:
        found: All numbers, as ``docs/proofs.json`` has them.
    """
    failures = found["failures"]
    counts = {"num_points": found["num_points"], "seed": found["seed"], "num_cells": found["cells"]}
    steps = {"order_steps": ORDER_STEPS, "weak_steps": WEAK_STEPS, "middle": MIDDLE, "noise": FROM_NOISE}
    head = _HEAD.format(
        **counts,
        **steps,
        num_sdes=len(SDES),
        sdes=", ".join(SDES),
        parameterizations=", ".join(PARAMETERIZATIONS),
        verdict=f"**{len(failures)} FAIL**, named below." if failures else "**All pass.**",
        cells=CELLS_A_SIDE**2,
        floor=math.sqrt((CELLS_A_SIDE**2 - 1) / found["num_points"]),
        same=SAME_POINTS,
        tolerance=TOLERANCE,
    )
    parts = [head, *_orders(found["orders"]), "", _WEAK.format(**steps), *_orders(found["weak_orders"]), ""]
    parts += [_TIGHT.format(rounding=_ROUNDING), *_tightest(found)]
    if failures:
        parts += ["", "## Failures", "", *(f"- {failure}" for failure in failures)]
    return "\n".join(parts) + "\n"


def _orders(cells: list[dict[str, Any]]) -> list[str]:
    """A table of the measured orders, a row for each solver."""
    rows: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for cell in cells:
        label = cell["solver"] if "solver" in cell else cell["sampler"]
        mark = "°" if cell.get("log_snr") == list(FROM_NOISE) else ""
        rows.setdefault((label + mark, cell.get("note", "")), []).append(cell)
    lines = ["| sampler | promised | Gaussian | mixture |", "|---|---|---|---|"]
    for (label, note), of in rows.items():
        by = {name: [cell for cell in of if cell["distribution"] == name] for name in ("Gaussian", "mixture")}
        promised = [cells[0]["promised"] for cells in by.values()]
        said = f"{promised[1]}" if promised[0] == promised[1] else f"{promised[1]}; Gaussian {promised[0]}"
        ranges = [_range([cell["measured"][-1] for cell in cells]) for cells in by.values()]
        lines.append(f"| {label}{f' ({note})' if note else ''} | {said} | {' | '.join(ranges)} |")
    return lines


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _tightest(found: dict[str, Any]) -> list[str]:
    """A table of the cells nearest to their bounds, a row for each registered sampler."""
    name_of = {entry.label: entry.name for entry in entries()}
    tight: dict[str, tuple[float, str]] = {}
    for distribution in ("gaussian", "mixture"):
        for cell in found[distribution]:
            for key, quantity in _QUANTITIES.items():
                value, bound = cell.get(key) or (0.0, 0.0)
                if bound <= _ROUNDING:
                    continue
                # NaN is the worst
                share = abs(value) / bound if value == value else math.inf
                row = f"{cell['sampler']} | {cell['sde']} | {distribution}, {quantity} | {abs(value):.2g} | {bound:.2g}"
                tight[name_of[cell["sampler"]]] = max(tight.get(name_of[cell["sampler"]], (0.0, "")), (share, row))
    lines = ["| sampler | variant | SDE | quantity | error | bound |", "|---|---|---|---|---|---|"]
    return lines + [f"| `{name}` | {row} |" for name, (_, row) in sorted(tight.items())]
