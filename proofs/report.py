"""The report of the proofs: a page of tables and a file of numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from experiment.workdir import write_json
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
        self.labels = [entry.label for entry in entries() if any(label == entry.label for label, _ in self.mixture)]

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
    """Write ``docs/proofs.md`` and ``benchmarks/results/proofs.json``.

    Args:
        proofs: What was found.
        root: The folder that holds, or will hold, ``docs/`` and ``benchmarks/``.
    """
    write_json(root / "benchmarks" / "results" / "proofs.json", numbers(proofs))
    page = "\n".join([*_head(proofs), *_summary(proofs), *_orders(proofs), *_gaussian(proofs), *_mixture(proofs)])
    write_atomically(root / "docs" / "proofs.md", (page + "\n").encode())


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
            {"solver": c.solver.label, "sde": sde, "distribution": c.distribution, "log_snr": list(c.solver.ends),
             "promised": c.promised, "measured": [round(m, 4) for m in c.measured],
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


_HEAD = """\
# Proofs

Every sampler on every SDE with every parameterization, held to distributions whose score is known in closed form.
Written by

```sh
python -m proofs --num-points {num_points} --seed {seed}
```

which exits with 1 if a cell fails. All values and bounds are in `benchmarks/results/proofs.json`; the bounds are
derived in `proofs/`, and `tests/proofs/test_proofs.py` asserts the same on a smaller budget.

{num_cells:,} cells: SDE × sampler × parameterization ({parameterizations}) × distribution, and the orders of
convergence. {verdict}

How to read it:

- **error ≤ bound.** Each sampler runs twice, the second time refined as named, mostly by twice the steps. By a
  sampler's promised order p its bias after that is the change by it / (2^p − 1). The bound is 1.5 times that, which
  leaves room for the next order, plus five standard errors where there is Monte-Carlo error. A sampler that converges
  to something else, or more slowly than promised, fails.
- **The truth** is the law of E[x0 | x_s], s being the grid's last time with noise, since there every sampler ends;
  x_T is drawn from p(x_T) of the data, not from the prior, so that no error is the prior's.
- **Gaussian**: in the plane, with correlated coordinates. Every sampler whose steps do not depend on norms takes x_T
  and its noise to x0 linearly; the matrices are found by impulses, so that mean and covariance are exact, without
  Monte-Carlo error. The others are drawn. Langevin samplers are held to the papers' formulas besides, written out for
  the Gaussian. Mean and covariance: norm of the error. KL: divergence of the output from the truth in nats. Shown is
  the worst of the parameterizations.
- **Mixture**: two unequal correlated Gaussians in the plane, {num_points:,} draws. Mean, covariance, third moment:
  the entry that comes nearest to its bound. Distance: root mean square of the relative errors of the probabilities of
  {cells} cells that the true density gives equal probability; exact draws have {floor:.3f} on average. Same: the
  largest difference of what the worst parameterization made of {same} points from what the closed form did, by the
  same noise.
- Networks: a `NetworkScoreModel` of each parameterization whose backbone answers exactly. All in float64.
"""

_ORDERS = """\
## Orders of convergence

Of deterministic solvers, point by point against the flow's own solution, from {order_steps[1]} to {order_steps[2]}
steps. The steps are equal in log-SNR, between {middle[0]:g} and {middle[1]:g}; in rows marked ° between {noise[0]:g},
or where the SDE begins, and {noise[1]:g}, where a start of low order costs nothing, since x0 hardly depends on x_t
there. Held to the promised order within {tolerance:g}. The midpoint rule promises 2, but its error of third order
vanishes on a Gaussian.
"""

_WEAK = """\
Weak orders of samplers with noise: of the errors of E cos(f x) and E sin(f x), f = 1 and 2, of a Gaussian and a
mixture on the line, by quadrature and so without Monte-Carlo error, from {weak_steps[1]} to {weak_steps[2]} steps
between the same log-SNRs. Held to 1 within {tolerance:g}.
"""


def _head(proofs: Proofs) -> list[str]:
    failures = proofs.failures()
    return _HEAD.format(
        num_points=proofs.num_points,
        seed=proofs.seed,
        num_cells=proofs.num_cells,
        parameterizations=", ".join(PARAMETERIZATIONS),
        verdict="**All pass.**" if not failures else f"**{len(failures)} FAIL.**",
        cells=CELLS_A_SIDE**2,
        floor=math.sqrt((CELLS_A_SIDE**2 - 1) / proofs.num_points),
        same=SAME_POINTS,
    ).split("\n")


def _summary(proofs: Proofs) -> list[str]:
    failed = set(proofs.failures())
    lines = ["## Summary", "", "Cells that pass, of the parameterizations on both distributions.", ""]
    lines += ["| sampler | refined by | " + " | ".join(SDES) + " |", "|---|---|" + "---|" * len(SDES)]
    refined_by = {entry.label: entry.refined_by for entry in entries()}
    for label in proofs.labels:
        row = []
        for sde in SDES:
            names = [f"{label} on {sde}, {p}, {d}" for p in PARAMETERIZATIONS for d in ("Gaussian", "mixture")]
            passed = sum(name not in failed for name in names)
            row.append(f"{passed} of {len(names)}" if passed == len(names) else f"**FAIL**: {passed} of {len(names)}")
        lines.append(f"| {label} | {refined_by[label]} | " + " | ".join(row) + " |")
    return [*lines, ""]


def _orders(proofs: Proofs) -> list[str]:
    if not proofs.orders:
        return []
    numbers = {"order_steps": ORDER_STEPS, "weak_steps": WEAK_STEPS, "middle": MIDDLE, "noise": FROM_NOISE}
    heads = " | ".join(SDES) + " |"
    lines = _ORDERS.format(**numbers, tolerance=TOLERANCE).split("\n")
    lines += ["| solver | on the | promised | " + heads, "|---|---|---|" + "---|" * len(SDES)]
    for rows in zip(*(proofs.orders[sde] for sde in SDES), strict=True):
        first = rows[0]
        mark = "°" if first.solver.ends == FROM_NOISE else ""
        note = f" ({first.solver.note})" if first.solver.note else ""
        values = " | ".join(_order(c.measured[-1], passed=c.checked.passed) for c in rows)
        lines.append(f"| {first.solver.label}{mark}{note} | {first.distribution} | {first.promised} | {values} |")
    lines += ["", *_WEAK.format(**numbers, tolerance=TOLERANCE).split("\n")]
    lines += ["| sampler | on the | promised | " + heads, "|---|---|---|" + "---|" * len(SDES)]
    for rows in zip(*(proofs.weak[sde] for sde in SDES), strict=True):
        values = " | ".join(_order(w.measured[-1], passed=w.checked.passed) for w in rows)
        lines.append(f"| {rows[0].sampler.label} | {rows[0].distribution} | 1 | {values} |")
    return [*lines, ""]


def _order(value: float, *, passed: bool) -> str:
    return f"{value:.2f}" if passed else f"**FAIL** {value:.2f}"


def _gaussian(proofs: Proofs) -> list[str]:
    lines = ["## Gaussian", ""]
    for sde in SDES:
        lines += [f"### {sde}, Gaussian", ""]
        lines += ["| sampler | NFE | mean | covariance | KL | papers' formulas |", "|---|---|---|---|---|---|"]
        for label in proofs.labels:
            cells = proofs.gaussian[label, sde].values()
            worst = [max((getattr(cell, key) for cell in cells), key=_share) for key in ("mean", "cov", "kl")]
            formulas = [cell.formulas for cell in cells if cell.formulas is not None]
            held = "" if not formulas else ("agree" if all(f.passed for f in formulas) else "**FAIL**")
            nfe = next(iter(cells)).nfe
            lines.append(f"| {label} | {nfe} | " + " | ".join(map(_against, worst)) + f" | {held} |")
        lines.append("")
    return lines


def _mixture(proofs: Proofs) -> list[str]:
    lines = ["## Mixture", ""]
    for sde in SDES:
        lines += [f"### {sde}, mixture", ""]
        lines += [
            "| sampler | NFE | mean | covariance | third moment | distance | same |",
            "|---|---|---|---|---|---|---|",
        ]
        for label in proofs.labels:
            cell = proofs.mixture[label, sde]
            shown = [cell.mean, cell.cov, cell.third, cell.distance, max(cell.same.values(), key=_share)]
            lines.append(f"| {label} | {cell.nfe} | " + " | ".join(map(_against, shown)) + " |")
        lines.append("")
    return lines


def _share(checked: Checked) -> float:
    """The share of its bound that a value takes; NaN is the worst."""
    share = abs(checked.value) / checked.bound
    return share if share == share else float("inf")


def _against(checked: Checked) -> str:
    text = f"{abs(checked.value):.1e} ≤ {checked.bound:.1e}"
    return text if checked.passed else f"**FAIL** {abs(checked.value):.1e} > {checked.bound:.1e}"
