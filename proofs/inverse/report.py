"""``docs/inverse_problems.json``, all figures, and the tables of ``docs/inverse_problems.md``, made of them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from runtime.files import write_atomically

from ..report import as_json
from .draws import Drawn
from .methods import ANCESTRAL, DDIM, HEUN, PC
from .moments import AffineRow
from .problems import GAUSSIAN, NOISELESS, TWO_MODES

# problem, method, sampler, and refinement of a row that is drawn
Task = tuple[str, str, str, int]
_SHOWN = {ANCESTRAL: "ancestral", DDIM: "DDIM", PC: "PC"}
_PAGE = Path(__file__).resolve().parents[2] / "docs" / "inverse_problems.md"
_TABLE = re.compile(r"(<!-- table: ([\w ,]+), written by python -m proofs\.inverse -->\n).*?(<!-- end -->)", re.DOTALL)
# of one number seen TMPD is MMPS, and Heun's method has DDIM's limits: figures of both are in the JSON alone
_LEFT_OUT = ("TMPD", HEUN)
_NAMES = ("mean, seen", "mean, hidden", "variance, seen", "variance, hidden", "covariance")


def numbers(found: Mapping[Task, AffineRow | Drawn], *, num_samples: int, seed: int) -> dict[str, Any]:
    """All figures, the rows in the order of ``found``.

    Args:
        found: Of each task its row.
        num_samples: Samples of a row that is drawn.
        seed: Their seed.
    """
    affine, drawn = [], []
    for (problem, method, sampler, refinement), row in found.items():
        of = {"problem": problem, "method": method, "sampler": sampler, "nfe": row.nfe}
        if isinstance(row, AffineRow):
            affine.append(of | {name: _digits(getattr(row, name)) for name in ("errors", "limit", "within")})
            continue
        of |= {"refinement": refinement, "errors": _digits(row.errors), "stderrs": _digits(row.stderrs)}
        pairs = {"weight": row.weight, "log_evidence": row.log_evidence}
        of |= {name: [round(number, 4) for number in pair] for name, pair in pairs.items() if pair is not None}
        drawn.append(of)
    return {"num_samples": num_samples, "seed": seed, "affine": affine, "drawn": drawn}


def _digits(values: Tensor) -> list[float]:
    # without -0.0
    return [round(value, 4) + 0.0 for value in values.tolist()]


def write(report: dict[str, Any], root: Path) -> None:
    """Write both files.

    Args:
        report: All figures.
        root: The folder that holds, or will hold, ``docs/``.
    """
    write_atomically(root / "docs" / "inverse_problems.json", as_json(report).encode())
    write_atomically(root / "docs" / "inverse_problems.md", page(report).encode())


def page(report: dict[str, Any]) -> str:
    """The text of ``docs/inverse_problems.md`` with the tables that the figures make."""
    affine, drawn = (
        [row for row in report[kind] if row["method"] not in _LEFT_OUT and row["sampler"] not in _LEFT_OUT]
        for kind in ("affine", "drawn")
    )
    tables = {
        "Gaussian": _affine_table(affine, GAUSSIAN.name, range(5)),
        "no noise": _affine_table(affine, NOISELESS.name, (1, 3)),
        "Gaussian, drawn": _gaussian_draws(drawn),
        "two modes": _two_modes(drawn),
    }
    return _TABLE.sub(lambda match: match[1] + tables[match[2]] + match[3], _PAGE.read_text(encoding="utf-8"))


def _affine_table(rows: list[dict[str, Any]], problem: str, shown: Sequence[int]) -> str:
    """Methods' own errors, and the largest that the sampler adds with 200 steps."""
    cells = []
    for row in (row for row in rows if row["problem"] == problem):
        added = max((row["errors"][k] - row["limit"][k] for k in shown), key=abs)
        own = [_number(row["limit"][k], row["within"][k]) for k in shown]
        cells.append([*_begin(row), *own, f"{added + 0.0:+.3f}"])
    return _table(("method", "sampler", "NFE", *(_NAMES[k] for k in shown), "the sampler adds"), cells)


def _gaussian_draws(rows: list[dict[str, Any]]) -> str:
    cells = []
    for row in (row for row in rows if row["problem"] == GAUSSIAN.name):
        evidence = _number(*row["log_evidence"]) if "log_evidence" in row else ""
        cells.append([*_begin(row), *_drawn_errors(row), evidence])
    return _table(("method", "sampler", "NFE", *_NAMES[:4], "log p(y)"), cells)


def _two_modes(rows: list[dict[str, Any]]) -> str:
    """Each method with 400 steps, and the weight with 200, too."""
    runs = {(row["method"], row["sampler"], row["refinement"]): row for row in rows if row["problem"] == TWO_MODES.name}
    cells = []
    for (method, sampler, refinement), row in runs.items():
        if refinement == 1:
            weights = [_number(*runs[method, sampler, k]["weight"]) for k in (0, 1)]
            evidence = _number(*row["log_evidence"]) if "log_evidence" in row else ""
            cells.append([*_begin(row), *weights, *_drawn_errors(row), evidence])
    head = ("method", "sampler", "NFE", "weight, 200 steps", "weight, 400 steps", *_NAMES[:4], "log p(y)")
    return _table(head, cells)


def _begin(row: dict[str, Any]) -> list[str]:
    return [row["method"], _SHOWN[row["sampler"]], f"{row['nfe']:,}"]


def _drawn_errors(row: dict[str, Any]) -> list[str]:
    return [_number(*pair) for pair in list(zip(row["errors"], row["stderrs"], strict=True))[:4]]


def _number(value: float, doubt: float) -> str:
    """A number, with its doubt where the third digit shows it."""
    return f"{round(value, 3) + 0.0:.3f}" + (f" ± {doubt:.3f}" if doubt >= 0.0015 else "")


def _table(head: Sequence[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
