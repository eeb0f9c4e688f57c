"""Samples by way of latents beside samples of pixels: ``python -m benchmarks.latents``.

Draws samples of every class by a model of pixels and by one of latents, with one sampler, in turn, and says how much
faster the latter is, decoding included, and which share of both a classifier recognises as the class asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.guidance import draw
from benchmarks.options import output, run_benchmark, whole
from benchmarks.timing import in_turn, seconds, table
from benchmarks.trained import load_images, unguided
from evaluation.quality import Estimate, train_feature_classifier
from experiment import TrainedRun, load_run
from experiment.build import build_sampler
from experiment.workdir import write_json
from likelihood import mean_and_stderr

RESULT = Path(__file__).parent / "results" / "latents.json"


class _Drawing:
    """Samples of one run, which a call draws anew."""

    def __init__(self, run: TrainedRun, args: argparse.Namespace) -> None:
        self.run, self.args = run, args
        config = unguided(run, sampler=args.sampler, num_steps=args.num_steps)
        self.sampler = build_sampler(config)
        self.model = run.sampled_model(self.sampler, config)

    def __call__(self, per_class: int) -> tuple[torch.Tensor, torch.Tensor]:
        x0, labels, _ = draw(self.run, self.model, self.sampler, per_class=per_class, batch_size=self.args.batch_size)
        return x0, labels


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table."""
    slowest = max(one["seconds"] for one in report["runs"].values())
    return [
        {
            "": name,
            "parameters": f"{one['parameters']:,}",
            "speed": f"{slowest / one['seconds']:.1f}",
            "recognised, %": f"{100 * one['recognised']['value']:.1f} ± {100 * one['recognised']['stderr']:.1f}",
        }
        for name, one in report["runs"].items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, judge, time, print, write."""
    parser = argparse.ArgumentParser(description="Samples of latents beside samples of pixels.", allow_abbrev=False)
    parser.add_argument("--pixels", type=Path, required=True, help="work directory of a model of pixels, told classes")
    parser.add_argument("--latents", type=Path, required=True, help="that of a model of latents of the same images")
    parser.add_argument("--per-class", type=whole(2), default=100, help="samples of each class that are judged")
    parser.add_argument("--timed", type=whole(1), default=5, help="samples of each class that are timed")
    parser.add_argument("--rounds", type=whole(1), default=3, help="times that each is timed, in turn")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=100)
    parser.add_argument("--num-images", type=whole(0), default=0, help="training images of the classifier; 0: all")
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args(arguments)
    runs = {"pixels": load_run(args.pixels), "latents": load_run(args.latents)}
    for name, run in runs.items():
        if not run.config.model.class_conditional or not run.conditions.only_labels:
            raise SystemExit(f"--{name} needs a run that is told classes alone; set model.class_conditional")
    train, held_out = (load_images(runs["pixels"].config, split) for split in ("train", "test"))
    train = train.subset(args.num_images) if args.num_images else train
    judge, accuracy = train_feature_classifier(train, held_out)
    drawings = {name: _Drawing(run, args) for name, run in runs.items()}
    report: dict[str, Any] = {
        "dataset": train.name, "sampler": args.sampler, "num_steps": args.num_steps, "per_class": args.per_class,
        "judge_accuracy": accuracy, "runs": {},
    }  # fmt: skip
    times = in_turn(
        {name: lambda one=one: seconds(lambda: one(args.timed), processor=True) for name, one in drawings.items()},
        args.rounds,
    )
    for name, one in drawings.items():
        x0, labels = one(args.per_class)
        right = (judge(x0).argmax(1) == labels).double()
        report["runs"][name] = {
            "step": runs[name].step,
            "parameters": sum(p.numel() for p in runs[name].model.parameters()),
            "seconds": median(times[name]),
            "recognised": asdict(Estimate(*mean_and_stderr(right))),
        }
        write_json(args.output, report)
    print(table(rows(report)))


if __name__ == "__main__":
    run_benchmark(main)
