"""The whole table, in several processes. Its command line is ``python -m proofs.inverse``.

It writes ``docs/inverse_problems.json`` and the tables of ``docs/inverse_problems.md``. The numbers repeat at a fixed
number of samples and a fixed seed.
"""

from __future__ import annotations

import argparse
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from tqdm import tqdm

from .draws import PARTICLES, Drawn, drawn_row, twisted_row
from .methods import ANCESTRAL, DDIM, METHODS, PC, inner_sampler
from .moments import AffineRow, affine_row
from .problems import GAUSSIAN, NOISELESS, TWO_MODES
from .report import Task, numbers, write

_PROBLEMS = {problem.name: problem for problem in (GAUSSIAN, NOISELESS, TWO_MODES)}
# draws do not tell Heun's method from DDIM
_DRAWN = (ANCESTRAL, DDIM, PC)


def tasks() -> list[Task]:
    """Every row, in the order of the tables."""
    listed = [
        (problem.name, method.label, sampler, 0)
        for problem in (GAUSSIAN, NOISELESS)
        for method in METHODS.values()
        for sampler in method.samplers
        if method.affine and (method.noiseless or problem is GAUSSIAN)
    ]
    for problem in (GAUSSIAN, TWO_MODES):
        chains = [
            (method.label, sampler)
            for method in METHODS.values()
            for sampler in (method.samplers if method.resamples == 1 else (ANCESTRAL,))
            if sampler in _DRAWN and not (problem is GAUSSIAN and method.affine)
        ]
        particles = [(label, ANCESTRAL) for label in PARTICLES]
        listed += [(problem.name, *pair, refinement) for pair in (*chains, *particles) for refinement in (0, 1)]
    return listed


def prove(task: Task, num_samples: int, seed: int) -> AffineRow | Drawn:
    """Do one task, in a process of its own."""
    torch.set_num_threads(1)
    name, method, sampler, refinement = task
    problem = _PROBLEMS[name]
    if method in PARTICLES:
        return twisted_row(problem, PARTICLES[method], refinement=refinement, count=num_samples // 4, seed=seed)
    if METHODS[method].affine and problem is not TWO_MODES:
        return affine_row(METHODS[method], problem, sampler)
    inner = inner_sampler(sampler, refinement)[1]
    return drawn_row(METHODS[method], problem, inner, count=num_samples, seed=seed)


def _effort(task: Task) -> int:
    """Longer tasks first: those of many particles or resamples."""
    return PARTICLES.get(task[1], 0) or 2 * getattr(METHODS.get(task[1]), "resamples", 0)


def run(arguments: argparse.Namespace) -> None:
    """Measure and write."""
    todo, found = tasks(), {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=context) as pool:
        pending = {
            pool.submit(prove, task, arguments.num_samples, arguments.seed): task
            for task in sorted(todo, key=_effort, reverse=True)
        }
        for future in tqdm(as_completed(pending), total=len(todo), unit="row", smoothing=0):
            found[pending[future]] = future.result()
    report = numbers({task: found[task] for task in todo}, num_samples=arguments.num_samples, seed=arguments.seed)
    write(report, Path(arguments.output))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proofs.inverse", description="Measure every method of posterior sampling.", allow_abbrev=False
    )
    parser.add_argument("--num-samples", type=int, default=2000, help="draws a row, at least 100; TDS draws a quarter")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=multiprocessing.cpu_count(), help="processes, at least 1")
    parser.add_argument("--output", default=".", help="the folder under which docs/ is written")
    parsed = parser.parse_args(arguments)
    if parsed.num_samples < 100 or parsed.workers < 1:
        parser.error(
            f"expected at least 100 samples and 1 worker, got {parsed.num_samples} and {parsed.workers}; raise them"
        )
    run(parsed)
    return 0
