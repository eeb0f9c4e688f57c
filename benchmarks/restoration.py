"""Every method of restoration on images whose truth is known: ``python -m benchmarks.restoration``.

Measures the first held-out images in several ways, y = A x0 + noise, draws several images of each y by every method,
and writes how near they are to the truth, whether their spread is as large as their error, and how well they agree with
y.
Values are in units of x0, images in [-1, 1].
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import names, output, run_benchmark, whole
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, load_named_run
from experiment import TrainedRun
from experiment.build import bound_x0
from experiment.pictures import as_array, save_png
from experiment.workdir import write_json
from models import LinearOperator, make_operator
from samplers import make_sampler
from tasks.restoration import (
    RestorationMethod,
    available_methods,
    coverage_of,
    draw_posterior,
    errors_of,
    make_method,
    measure,
    residuals_of,
    restoration_figures,
    restoration_picture,
    shown_measurement,
)

RESULT = Path(__file__).parent / "results" / "restoration.json"
# operator and options of each problem
PROBLEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "half": ("inpaint", {"hidden": "right"}),
    "box": ("inpaint", {"hidden": "center"}),
    "x2": ("downsample", {"factor": 2}),
    "x4": ("downsample", {"factor": 4}),
    "blur": ("blur", {"std": 1.0}),
}
# options other than a method's defaults: a fourth of the particles, which are a fourth of the time
OPTIONS: dict[str, dict[str, Any]] = {"twisted": {"num_particles": 4}}
SHOWN_IMAGES = 6


def restore(
    run: TrainedRun, method: RestorationMethod, y: Tensor, labels: Tensor | None, *, num_samples: int, batch_size: int
) -> tuple[Tensor, int]:
    """Samples of p(x0 | y) for each y, [N, K, ...], and the network calls of one."""
    device = next(run.model.parameters()).device
    model = run.model if method.observe is None else method.observe(run.model)
    model = bound_x0(run.config, model, run.kind)
    pairs = [(k, j) for k in range(len(y)) for j in range(num_samples)]
    parts, nfe = [], 0
    for first in tqdm(range(0, len(pairs), batch_size), desc=method.name, unit="batch", leave=False):
        numbers = pairs[first : first + batch_size]
        images = torch.tensor([k for k, _ in numbers])
        cond = None if labels is None else labels[images].to(device)
        result = draw_posterior(method, model, y[images].to(device), numbers, cond=cond)
        parts.append(result.x0.cpu())
        nfe = max(nfe, result.nfe)
    return torch.cat(parts).unflatten(0, (len(y), num_samples)), nfe


def figures(operator: LinearOperator, x0: Tensor, truth: Tensor, y: Tensor, *, noise_std: float) -> dict[str, Any]:
    """See ``restoration_figures``."""
    per_image = errors_of(x0, truth) | coverage_of(x0, truth) | residuals_of(operator, x0, y)
    return restoration_figures(per_image, num_samples=x0.shape[1], noise_std=noise_std)


def picture(run: TrainedRun, operator: LinearOperator, drawn: dict[str, Tensor], truth: Tensor, y: Tensor) -> Any:
    """A row of each of the first images: truth, measurement, and two samples of every method."""
    count = min(SHOWN_IMAGES, len(truth))
    columns = {"truth": truth[:count], "observed": shown_measurement(operator, y[:count])}
    for number, (name, x0) in enumerate(drawn.items()):
        # a blank of its own over the second sample
        columns |= {name: x0[:count, 0], " " * (number + 1): x0[:count, 1]}
    return restoration_picture({name: as_array(x0, run.kind) for name, x0 in columns.items()})


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table, a row for each method of each problem."""

    def written(one: dict[str, float] | None, digits: int) -> str:
        return "" if one is None else f"{one['value']:.{digits}f} ± {one['stderr']:.{digits}f}"

    return [
        {
            "problem": row["problem"],
            "method": row["method"],
            "RMSE of a sample": written(row["rmse"], 3),
            "RMSE of the mean": written(row["rmse_of_mean"], 3),
            "spread / skill": written(row["spread_skill"], 2),
            "chi2": written(row["chi2"], 2),
            "coverage": written(row["coverage"], 2),
            "NFE": str(row["nfe"]),
        }
        for row in sorted(report["rows"], key=lambda row: (list(PROBLEMS).index(row["problem"]), row["method"]))
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Every method of restoration.", allow_abbrev=False)
    add_run(parser)
    parser.add_argument(
        "--problems", type=names(list(PROBLEMS)), default=list(PROBLEMS), help="some of " + ", ".join(PROBLEMS)
    )
    parser.add_argument("--methods", type=names(available_methods()), default=available_methods())
    parser.add_argument("--noise-std", type=float, default=0.1, help="of the measurement, in units of x0")
    parser.add_argument("--num-images", type=whole(2), default=64, help="the first of the test split")
    parser.add_argument("--num-samples", type=whole(2), default=8, help="of each image")
    parser.add_argument("--sampler", default="ancestral", help="steps along the grid of log-SNR")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=128)
    parser.add_argument("--pictures", type=Path, help="folder for a PNG of each problem; default: none")
    parser.add_argument("--output", type=output, default=RESULT, help="rows that are there already are not drawn again")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure, print, write."""
    args = _parse(arguments)
    run = load_named_run(args)
    dataset = load_images(run.config, "test").subset(args.num_images)
    truth = dataset.space.encode(dataset.stored)
    labels = dataset.labels if run.config.model.class_conditional else None
    settings = {
        "dataset": dataset.name, "config": args.config, "step": run.step, "noise_std": args.noise_std,
        "num_images": len(truth), "num_samples": args.num_samples, "sampler": args.sampler, "num_steps": args.num_steps,
    }  # fmt: skip
    report = _begun(args.output, settings)
    for problem in args.problems:
        name, options = PROBLEMS[problem]
        operator = make_operator(name, shape=run.sample_shape, **options)
        y, drawn = measure(operator, truth, noise_std=args.noise_std), {}
        for method_name in args.methods:
            if any((row["problem"], row["method"]) == (problem, method_name) for row in report["rows"]):
                continue
            sampler = make_sampler(args.sampler, num_steps=args.num_steps, grid="log_snr")
            options = OPTIONS.get(method_name, {})
            method = make_method(
                method_name, operator=operator, noise_std=args.noise_std, sampler=sampler, options=options
            )
            x0, nfe = restore(run, method, y, labels, num_samples=args.num_samples, batch_size=args.batch_size)
            drawn[method_name] = x0
            found = figures(operator, x0, truth, y, noise_std=args.noise_std)
            report["rows"].append({"problem": problem, "method": method_name, "nfe": nfe, **found})
            write_json(args.output, report)
        if args.pictures and drawn:
            save_png(args.pictures / f"{dataset.name}_restored_{problem}.png", picture(run, operator, drawn, truth, y))
    print(table(rows(report)))


def _begun(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The report to go on with: that of a file with the same settings, or an empty one."""
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if settings.items() <= found.items() else {**settings, "rows": []}


if __name__ == "__main__":
    run_benchmark(main)
