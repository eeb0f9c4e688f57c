"""The report of the proofs: every cell in ``docs/proofs.json``, and the page ``docs/proofs.md``, made of that."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from runtime.files import write_atomically

from .checked import Checked
from .entries import entries
from .guidance_report import KINDS as GUIDANCE_KINDS
from .guidance_report import guidance_page, rows_of
from .mixture import CELLS_A_SIDE, SAME_POINTS
from .oracles import PARAMETERIZATIONS, SDES
from .orders import FROM_NOISE, MIDDLE, TOLERANCE
from .orders import STEPS as ORDER_STEPS
from .weak import STEPS as WEAK_STEPS

# the kind of proof, the sampler where a task is one sampler's, and the SDE
Task = tuple[str, str, str]
# the page, with places for what is measured
_PAGE = Path(__file__).with_name("page.md")
# bounds up to this are those of rounding
_ROUNDING = 1e-9
_QUANTITIES = {
    "mean": "mean", "cov": "covariance", "kl": "KL", "formulas": "formulas", "third": "third moment",
    "distance": "distance",
}  # fmt: skip


def numbers(found: Mapping[Task, Any], *, num_points: int, seed: int) -> dict[str, Any]:
    """Every cell's values and bounds, to four digits, and the names of those that did not pass.

    Args:
        found: Of each task what it found: cells by parameterization, a cell, or convergences.
        num_points: Monte-Carlo draws a cell.
        seed: The seed.
    """
    kinds = ("gaussian", "mixture", "orders", "weak_orders", *GUIDANCE_KINDS)
    rows: dict[str, list[dict[str, Any]]] = {kind: [] for kind in kinds}
    passed: list[tuple[str, bool]] = []
    for (kind, label, sde), result in sorted(found.items(), key=lambda item: item[0]):
        if kind in GUIDANCE_KINDS:
            for row, name, well in rows_of(kind, label, sde, result):
                rows[kind].append(row)
                passed.append((name, well))
        elif kind == "gaussian":
            for name, cell in result.items():
                of = {"sampler": label, "sde": sde, "parameterization": name, "nfe": cell.nfe}
                rows[kind].append(of | _pairs(cell.checks))
                passed.append((f"{label} on {sde}, {name}, Gaussian", cell.passed))
        elif kind == "mixture":
            of = {"sampler": label, "sde": sde, "nfe": result.nfe}
            rows[kind].append(of | _pairs(result.checks) | {"same": _pairs(result.same)})
            shared = all(checked.passed for checked in result.checks.values())
            for name, checked in result.same.items():
                passed.append((f"{label} on {sde}, {name}, mixture", shared and checked.passed))
        else:
            weak = kind == "weak_orders"
            for c in result:
                of = {"sampler": c.solver.label} if weak else {"solver": c.solver.label, "note": c.solver.note}
                of |= {"sde": sde, "distribution": c.distribution}
                of |= {} if weak else {"log_snr": list(c.solver.ends)}
                measured, errors = [round(m, 4) for m in c.measured], [float(f"{e:.4g}") for e in c.errors]
                rows[kind].append(of | {"promised": c.promised, "measured": measured, "errors": errors})
                name = f"{'weak order' if weak else 'order'} of {c.solver.label} on {sde}, {c.distribution}"
                passed.append((name, c.checked.passed))
    failures = [name for name, well in passed if not well]
    return {"num_points": num_points, "seed": seed, "cells": len(passed), "failures": failures, **rows}


def _pairs(checks: Mapping[str, Checked | None]) -> dict[str, list[float] | None]:
    return {name: c and [float(f"{number:.4g}") for number in (c.value, c.bound)] for name, c in checks.items()}


def write(report: dict[str, Any], root: Path) -> None:
    """Write ``docs/proofs.json``, ``docs/proofs.md`` and the tables of ``docs/guidance.md``.

    Args:
        report: All numbers.
        root: The folder that holds, or will hold, ``docs/``.
    """
    write_atomically(root / "docs" / "proofs.json", as_json(report).encode())
    write_atomically(root / "docs" / "proofs.md", page(report).encode())
    write_atomically(root / "docs" / "guidance.md", guidance_page(report).encode())


def as_json(report: dict[str, Any]) -> str:
    """The text of ``docs/proofs.json``: JSON with one line a cell."""

    def value(of: Any) -> str:
        lines = ",\n".join(map(json.dumps, of)) if isinstance(of, list) else ""
        return f"[\n{lines}\n]" if lines else json.dumps(of)

    return "{\n" + ",\n".join(f"{json.dumps(key)}: {value(of)}" for key, of in report.items()) + "\n}\n"


def page(report: dict[str, Any]) -> str:
    """The text of ``docs/proofs.md``.

    Args:
        report: All numbers, as ``docs/proofs.json`` has them.
    """
    failures = report["failures"]
    return _PAGE.read_text(encoding="utf-8").format(
        num_points=report["num_points"],
        seed=report["seed"],
        num_cells=report["cells"],
        num_sdes=len(SDES),
        sdes=", ".join(SDES),
        parameterizations=", ".join(PARAMETERIZATIONS) + "; of the rectified flow velocity too",
        verdict=f"**{len(failures)} FAIL**, named below." if failures else "**All pass.**",
        density_cells=CELLS_A_SIDE**2,
        floor=math.sqrt((CELLS_A_SIDE**2 - 1) / report["num_points"]),
        same=SAME_POINTS,
        order_steps=ORDER_STEPS,
        weak_steps=WEAK_STEPS,
        middle=MIDDLE,
        noise=FROM_NOISE,
        tolerance=TOLERANCE,
        rounding=_ROUNDING,
        orders=_orders(report["orders"]),
        weak_orders=_orders(report["weak_orders"]),
        tightest=_tightest(report),
        failures="\n".join(["", "## Failures", "", *(f"- {failure}" for failure in failures), ""]) if failures else "",
    )


def _orders(cells: list[dict[str, Any]]) -> str:
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
    return "\n".join(lines)


def _range(values: list[float]) -> str:
    low, high = f"{min(values):.2f}", f"{max(values):.2f}"
    return low if low == high else f"{low} to {high}"


def _tightest(report: dict[str, Any]) -> str:
    """A table of the cells nearest to their bounds, a row for each registered sampler."""
    name_of = {entry.label: entry.name for entry in entries()}
    tight: dict[str, tuple[float, str]] = {}
    for distribution in ("gaussian", "mixture"):
        for cell in report[distribution]:
            for key, quantity in _QUANTITIES.items():
                value, bound = cell.get(key) or (0.0, 0.0)
                if bound <= _ROUNDING:
                    continue
                # NaN is the worst
                share = abs(value) / bound if value == value else math.inf
                row = f"{cell['sampler']} | {cell['sde']} | {distribution}, {quantity} | {abs(value):.2g} | {bound:.2g}"
                tight[name_of[cell["sampler"]]] = max(tight.get(name_of[cell["sampler"]], (0.0, "")), (share, row))
    lines = ["| sampler | variant | SDE | quantity | error | bound |", "|---|---|---|---|---|---|"]
    return "\n".join(lines + [f"| `{name}` | {row} |" for name, (_, row) in sorted(tight.items())])
