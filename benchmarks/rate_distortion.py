"""Distortion and rate over the noise of the latents: ``python -m benchmarks.rate_distortion``.

Trains a latent diffusion together with its autoencoder (``configs/latent/digits_joint.py``) at several fixed noises of
its latents, log 1 / r^2, on an SDE that begins with that noise, and measures each on the held-out images.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from commands.eval import evaluate
from commands.train import train
from experiment.config import load_config
from experiment.pictures import save_figure
from experiment.workdir import write_json

RESULT = Path(__file__).parent / "results" / "rate_distortion.json"
CONFIG = "configs/latent/digits_joint.py"
_NUMBERS = ("distortion", "rate", "bits_per_dim")


def measure(log_snr: float, num_steps: int, workdir: Path) -> dict[str, float]:
    """Train and measure at one noise; what is there already is not trained again."""
    settings = {
        "model.first_stage.log_snr": log_snr,
        "sde.sigma_min": math.exp(-0.5 * log_snr),
        "training.num_steps": num_steps,
        "optim.decay_steps": num_steps,
        "training.sample_every": 0,
        "eval.likelihoods": "vlb_continuous",
    }
    config = load_config(CONFIG, [f"--config.{key}={value}" for key, value in settings.items()])
    folder = workdir / f"log_snr_{log_snr:g}"
    train(config, folder)
    found = evaluate(config, folder)["vlb_continuous"]
    return {"log_snr": log_snr} | {key: found[key] for name in _NUMBERS for key in (name, f"{name}_stderr")}


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table, a row a noise."""
    return [
        {"log 1 / r²": f"{one['log_snr']:g}"}
        | {name.replace("_per_", "/"): f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}" for name in _NUMBERS}
        for one in report["rows"]
    ]


def picture(report: dict[str, Any]) -> Figure:
    """Distortion over rate, and lines of equal sum."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes = figure.add_subplot()
    points = report["rows"]
    rate, distortion = ([one[name] for one in points] for name in ("rate", "distortion"))
    errors = ([one[f"{name}_stderr"] for one in points] for name in ("rate", "distortion"))
    axes.errorbar(rate, distortion, **dict(zip(("xerr", "yerr"), errors, strict=True)), marker="o", capsize=2)
    for one in points:
        axes.annotate(f"{one['log_snr']:g}", (one["rate"], one["distortion"]), (4, 4), textcoords="offset points")
    best = min(one["bits_per_dim"] for one in points)
    ends = (0.0, 1.05 * max(rate))
    axes.plot(ends, [best - end for end in ends], "--", color="grey", label=f"sum {best:.2f}, the least")
    axes.set(xlabel="rate, bits/dim", ylabel="distortion, bits/dim", xlim=ends)
    axes.set_title("by log 1 / r² of the latents' noise r", fontsize="medium")
    axes.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, print, write."""
    parser = argparse.ArgumentParser(description="Distortion and rate over the noise of latents.", allow_abbrev=False)
    parser.add_argument("--log-snrs", type=listed(float), default=[0.0, 1.0, 2.0, 3.0, 4.0, 5.0], help="log 1 / r^2")
    parser.add_argument("--num-steps", type=whole(1), default=1_000, help="of each training")
    parser.add_argument("--workdir", type=Path, default=Path("runs/benchmarks/rate_distortion"))
    parser.add_argument("--output", type=output, default=RESULT)
    parser.add_argument("--picture", type=output, help="a PNG; default: none")
    args = parser.parse_args(arguments)
    report: dict[str, Any] = {"config": CONFIG, "num_steps": args.num_steps, "rows": []}
    for log_snr in args.log_snrs:
        report["rows"].append(measure(log_snr, args.num_steps, args.workdir))
        write_json(args.output, report)
    print(table(rows(report)))
    if args.picture:
        save_figure(args.picture, picture(report))


if __name__ == "__main__":
    run_benchmark(main)
