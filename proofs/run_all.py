"""The whole table, in several processes. Its command line is ``python -m proofs``.

It writes ``docs/proofs.json``, ``docs/proofs.md`` and the tables of ``docs/guidance.md``, and exits with 1 if a cell
fails. The numbers repeat to the bit at a fixed number of points and a fixed seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .cascade import NOISE_T, prove_cascade
from .entries import entries
from .gaussian import prove_gaussian
from .guidance import linear_entries, prove_condition, prove_forms, prove_guidance
from .guidance_report import SDE_OF_GUIDANCE
from .identities import prove_identities
from .mixture import prove_mixture
from .oracles import SDES
from .orders import convergences
from .report import Task, numbers, write
from .weak import weak_convergences


def tasks(only: str = "") -> list[Task]:
    """All tasks, the longest first; ``only`` keeps the samplers whose label has it, and leaves the orders out."""
    listed: list[Task] = [] if only else [(kind, "", sde) for kind in ("weak_orders", "orders") for sde in SDES]
    listed += [] if only else [(kind, "", SDE_OF_GUIDANCE) for kind in ("guidance_forms", "cascade")]
    listed += [] if only else [("identities", "", sde) for sde in SDES]
    linear = [entry.label for entry in linear_entries() if only in entry.label]
    listed += [(kind, label, SDE_OF_GUIDANCE) for kind in ("guidance", "condition") for label in linear]
    labels = sorted(
        (entry.label for entry in entries() if only in entry.label), key=lambda label: "none +" not in label
    )
    return listed + [(kind, label, sde) for label in labels for kind in ("gaussian", "mixture") for sde in SDES]


def prove(task: Task, num_points: int, seed: int) -> Any:
    """Do one task, in a process of its own."""
    torch.set_num_threads(1)
    kind, label, sde_name = task
    sde = SDES[sde_name]
    if kind == "orders":
        return list(convergences(sde))
    if kind == "weak_orders":
        return list(weak_convergences(sde))
    if kind == "guidance_forms":
        return prove_forms(sde)
    if kind == "identities":
        return prove_identities(sde)
    if kind == "cascade":
        return {(s, stopped): prove_cascade(s, truncated=stopped) for s in NOISE_T for stopped in (False, True)}
    entry = next(entry for entry in entries() if entry.label == label)
    if kind in ("guidance", "condition"):
        return prove_guidance(sde, entry) if kind == "guidance" else prove_condition(sde, entry)
    of_kind = prove_gaussian if kind == "gaussian" else prove_mixture
    return of_kind(sde, entry, num_points=num_points, seed=seed)


def run(arguments: argparse.Namespace) -> int:
    """Prove, write, and say what failed."""
    todo = tasks(arguments.only)
    if not todo:
        raise SystemExit(f"no sampler's label has {arguments.only!r}; the labels are in docs/proofs.json")
    found: dict[Task, Any] = {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        pending = {pool.submit(prove, task, arguments.num_points, arguments.seed): task for task in todo}
        for future in tqdm(as_completed(pending), total=len(todo), unit="cell", smoothing=0):
            found[pending[future]] = future.result()
    report = numbers(found, num_points=arguments.num_points, seed=arguments.seed)
    if not arguments.only or arguments.output is not None:
        write(report, Path(arguments.output or "."))
    failures = report["failures"]
    for failure in failures:
        print(f"FAIL {failure}")
    print(f"{report['cells'] - len(failures)} of {report['cells']} cells pass")
    return 1 if failures else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proofs", description="Prove every sampler on every SDE, and guidance.", allow_abbrev=False
    )
    parser.add_argument("--num-points", type=int, default=100_000, help="Monte-Carlo draws a cell, at least 1,000")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="processes, at least 1")
    parser.add_argument("--only", default="", metavar="TEXT", help="only samplers whose label has this")
    parser.add_argument("--output", default=None, help="the folder under which docs/ is written")
    parsed = parser.parse_args(arguments)
    if parsed.num_points < 1000 or parsed.workers < 1:
        parser.error(
            f"expected at least 1000 points and 1 worker, got {parsed.num_points} and {parsed.workers}; raise them"
        )
    return run(parsed)
