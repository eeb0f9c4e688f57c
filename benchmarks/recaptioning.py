"""Noise of captions, and its cure by recaptioning: ``python -m benchmarks.recaptioning``.

A share rho of the captions of scenes is that of other scenes. A model that has learned the law of such data, and makes
no other error, draws a right scene with probability 1 - rho, and else one without regard to the caption: each grade is
1 - rho (1 - chance). This is held against the generator itself: true scenes are graded against their noisy captions.

Then captioners are trained on a few clean captions, alone or beside noisy ones, and rewrite those of other scenes.
Their grades against the truth bound those of a model that is trained on rewritten captions; ``recovered`` is the part
of what noise took, (rewritten - noisy) / (1 - noisy).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from data import ImageDataset, load_dataset
from data.sources.scene_words import Scene, captions_of, parse_caption, scenes_of
from evaluation.scenes import GRADES, chance_levels, grade_estimates, grade_scenes
from experiment.workdir import write_json
from training.text.captioning import train_captioner

RESULT = Path(__file__).parent / "results" / "recaptioning.json"


def told_by(captions: Sequence[str]) -> list[Scene | None]:
    """The scene of each caption; None of what is none."""
    scenes: list[Scene | None] = []
    for caption in captions:
        try:
            scenes.append(parse_caption(caption))
        except ValueError:
            scenes.append(None)
    return scenes


def caption_noise(rho: float, count: int) -> dict[str, dict[str, float]]:
    """Grades of the first true training scenes against their captions at a rate of wrong ones, beside the closed form.

    Returns:
        For each of ``GRADES`` the mean with its standard error, and ``expected``, 1 - rho (1 - chance).
    """
    truth = scenes_of("train", count)
    asked = [parse_caption(caption) for caption in captions_of("train", count, wrong_captions=rho)]
    found, chance = grade_estimates(grade_scenes(asked, truth)), chance_levels(truth)
    return {name: asdict(found[name]) | {"expected": 1 - rho * (1 - chance[name])} for name in GRADES}


def scenes(split: str, count: int, rho: float = 0.0) -> ImageDataset:
    """The first images of a split of 16x16 scenes."""
    images = {"train": max(count, 20), "test": 20 * count}[split]
    options = {"num_images": images, "wrong_captions": rho}
    dataset = load_dataset("scenes", root=".", split=split, options=options)
    assert isinstance(dataset, ImageDataset)
    return dataset.subset(count)


def recaptioned(num_clean: int, rho: float, held_out: ImageDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Grades of the captions that a captioner writes of test scenes, and the time to train it.

    Args:
        num_clean: Clean captions that it learns from.
        rho: Rate of wrong ones among others that it learns from beside them; 0 for none.
        held_out: The test scenes.
        args: Of the command line.
    """
    began = time.process_time()
    noisy = scenes("train", args.num_noisy, rho) if rho else None
    captioner = train_captioner(scenes("train", num_clean), noisy, num_steps=args.num_steps, seed=args.seed)
    seconds = time.process_time() - began
    written = told_by(captioner.caption(held_out.space.encode(held_out.images)))
    grades = grade_estimates(grade_scenes(scenes_of("test", len(held_out)), written))
    return {"processor_seconds": seconds} | {name: asdict(grades[name]) for name in GRADES}


def recovered(rewritten: float, noisy: float) -> float:
    """The part of what noise took from a grade that rewritten captions have back."""
    return (rewritten - noisy) / (1 - noisy)


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table."""
    noise = [
        {"captions": f"rho = {rho}: measured, closed form"}
        | {
            f"{name}, %": f"{100 * one['value']:.2f} ± {100 * one['stderr']:.2f}, {100 * one['expected']:.2f}"
            for name, one in found.items()
        }
        for rho, found in report["noise"].items()
    ]
    rewritten = [
        {"captions": f"rewritten: {kind}"}
        | {f"{name}, %": f"{100 * found[name]['value']:.2f} ± {100 * found[name]['stderr']:.2f}" for name in GRADES}
        for kind, found in report["rewritten"].items()
    ]
    back = [
        {"captions": f"recovered: {kind}, rho = {rho}"} | {f"{name}, %": f"{100 * one[name]:.1f}" for name in GRADES}
        for kind, by_rate in report["recovered"].items()
        for rho, one in by_rate.items()
    ]
    return [*noise, *rewritten, *back]


def main(arguments: Sequence[str] | None = None) -> None:
    """Grade noise, train, rewrite, grade, print, write."""
    parser = argparse.ArgumentParser(description="Recaptioning of scenes.", allow_abbrev=False)
    parser.add_argument("--clean", type=listed(int), default=[2000], help="numbers of clean captions")
    parser.add_argument("--clean-beside", type=listed(int), default=[], help="numbers of them beside noisy ones")
    parser.add_argument("--rates", type=listed(float), default=[0.0, 0.2, 0.5], help="of wrong captions")
    parser.add_argument(
        "--num-noisy", type=whole(20), default=20_000, help="captions whose noise is graded, and learned from"
    )
    parser.add_argument("--num-images", type=whole(2), default=1000, help="test scenes whose captions are rewritten")
    parser.add_argument("--num-steps", type=whole(1), default=1500, help="of each captioner")
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args(arguments)
    report: dict[str, Any] = {
        "num_noisy": args.num_noisy, "num_images": args.num_images, "num_steps": args.num_steps, "seed": args.seed,
        "noise": {f"{rho:g}": caption_noise(rho, args.num_noisy) for rho in args.rates},
        "rewritten": {},
        "recovered": {},
    }  # fmt: skip
    held_out, rates = scenes("test", args.num_images), [rho for rho in args.rates if rho > 0]
    kinds = [(count, 0.0) for count in args.clean] + [(count, rho) for count in args.clean_beside for rho in rates]
    for count, rho in kinds:
        kind = f"{count} clean" + (f" beside {args.num_noisy} at rho = {rho:g}" if rho else "")
        found = report["rewritten"][kind] = recaptioned(count, rho, held_out, args)
        report["recovered"][kind] = {
            f"{one:g}": {
                name: recovered(found[name]["value"], report["noise"][f"{one:g}"][name]["expected"]) for name in GRADES
            }
            for one in ([rho] if rho else rates)
        }
        write_json(args.output, report)
    print(table(rows(report)))


if __name__ == "__main__":
    run_benchmark(main)
