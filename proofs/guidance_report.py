"""The rows of ``docs/proofs.json`` on guidance, and the tables of ``docs/guidance.md``, made of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .checked import Checked
from .entries import entries
from .guidance import V_COND, V_NULL, WEIGHTS, guided_var, noise_share
from .oracles import SDES

KINDS = ("guidance", "guidance_forms", "condition", "identities", "cascade")
# the laws depend on sigma / alpha alone, and a condition changes the model, not the sampler: one SDE is enough
SDE_OF_GUIDANCE = "VP"
_PAGE = Path(__file__).resolve().parent.parent / "docs" / "guidance.md"
_BEGIN, _END = "<!-- {}written by python -m proofs -->\n", "<!-- end -->\n"
# of the samplers, those whose numbers the page shows
_SHOWN = (
    "DDIM, eta = 0", "Heun", "DPM-Solver++ 2M", "UniPC 3", "flow, adams", "ancestral, small", "ancestral, large",
    "Euler-Maruyama", "reverse diffusion", "SDE-DPM-Solver++ 2M", "DDIM, eta = 0.5", "Heun, churn 10",
    "annealed Langevin",
)  # fmt: skip


def rows_of(kind: str, label: str, sde: str, result: Any) -> Iterator[tuple[dict[str, Any], str, bool]]:
    """The rows that a task's result makes, each with its name and whether it passed."""
    if kind == "condition":
        of = {"sampler": label, "sde": sde, "nfe": result.nfe}
        yield of | {name: _pair(c) for name, c in result.checks.items()}, f"{label} on {sde}, condition", result.passed
    elif kind == "guidance":
        for weight, (cell, var) in result.items():
            of = {"sampler": label, "sde": sde, "weight": weight, "nfe": cell.nfe, "var": _digits(var)}
            yield of | {"error": _pair(cell.checks["var"])}, f"{label} on {sde}, guided by {weight:g}", cell.passed
    elif kind == "identities":
        for identity, checked in result.items():
            yield {"identity": identity, "sde": sde, "error": _pair(checked)}, f"{identity} on {sde}", checked.passed
    elif kind == "cascade":
        for (s, truncated), cell in result.items():
            of = {"noise_t": s, "truncated": truncated, "nfe": cell.nfe}
            of |= {name: _pair(c) for name, c in cell.checks.items()}
            yield of, f"cascade with noise of t = {s:g}{', truncated' if truncated else ''}", cell.passed
    else:
        for form, (checked, var, predicted) in result.items():
            of = {"form": form, "sde": sde, "var": _digits(var), "predicted": _digits(predicted)}
            yield of | {"error": _pair(checked)}, f"{form} on {sde}", checked.passed


def _pair(checked: Checked | None) -> list[float] | None:
    return checked and [float(f"{number:.4g}") for number in (checked.value, checked.bound)]


def _digits(value: float) -> float:
    return float(f"{value:.5g}")


def guidance_page(report: dict[str, Any]) -> str:
    """The text of ``docs/guidance.md`` with the tables that the numbers make."""
    page = _PAGE.read_text(encoding="utf-8")
    for name, table in {"": _tables, "identities, ": _identities, "a cascade, ": _cascade}.items():
        begin = _BEGIN.format(name)
        before, rest = page.split(begin)
        page = f"{before}{begin}{table(report)}{_END}{rest.split(_END, 1)[1]}"
    return page


def _tables(report: dict[str, Any]) -> str:
    measured = {(row["sampler"], row["weight"]): row["var"] for row in report["guidance"]}
    limits = {
        "probability flow": [guided_var(V_COND, V_NULL, w, start=(1e6, 1e12), r=1e-6) for w in WEIGHTS],
        "reverse SDE": [(2 - 2 ** (2 - 2 * w)) / (2 * w - 1) for w in WEIGHTS],
        "tilted law": [2 / (w + 1) for w in WEIGHTS],
    }
    lines = [
        f"| sampler, on {SDE_OF_GUIDANCE} | leads to | " + " | ".join(f"w = {w:g}" for w in WEIGHTS) + " |",
        "|---|---|---|---|---|",
    ]
    lines += [f"| **closed form** | **{name}** | {_cells(values)} |" for name, values in limits.items()]
    for entry in entries():
        if entry.label in _SHOWN and (entry.label, WEIGHTS[0]) in measured:
            sde = SDES[SDE_OF_GUIDANCE]
            noise = noise_share(entry.build(sde, 0), sde)
            leads = {0.0: "probability flow", 1.0: "reverse SDE", None: "tilted law"}.get(
                noise
            ) or f"eta² = {noise:.2f}"
            lines.append(f"| {entry.label} | {leads} | {_cells([measured[entry.label, w] for w in WEIGHTS])} |")
    lines += ["", f"| form, on {SDE_OF_GUIDANCE}, by DPM-Solver++ 2S | predicted | measured |", "|---|---|---|"]
    lines += [f"| {row['form']} | {row['predicted']:.4f} | {row['var']:.4f} |" for row in report["guidance_forms"]]
    return "\n".join(lines) + "\n"


def _identities(report: dict[str, Any]) -> str:
    """A row for each identity: the largest error over the SDEs."""
    worst: dict[str, float] = {}
    for row in report["identities"]:
        worst[row["identity"]] = max(worst.get(row["identity"], 0.0), row["error"][0])
    lines = ["| identity | largest error |", "|---|---|"]
    return "\n".join(lines + [f"| {identity} | {error:.1g} |" for identity, error in worst.items()]) + "\n"


def _cascade(report: dict[str, Any]) -> str:
    lines = [
        "| t of the noise | truncated | NFE | error of the mean | of the covariance | bound |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["cascade"]:
        mean, (cov, bound) = row["mean"][0], row["cov"]
        truncated = "yes" if row["truncated"] else "no"
        lines.append(f"| {row['noise_t']:g} | {truncated} | {row['nfe']} | {mean:.1g} | {cov:.5f} | {bound:.5f} |")
    return "\n".join(lines) + "\n"


def _cells(values: list[float]) -> str:
    return " | ".join(f"{value:.4f}" for value in values)
