"""Obedience and information of a model of captioned scenes: ``python -m benchmarks.scenes``.

Draws images of prompts that the model has not seen, reads what is in them, and says which share of sizes, colours,
digits and relations is as asked: of pairs of colour and digit that were trained on, of pairs that never were, and of
prompts that were dealt to other images, where nothing but chance is left. Then it measures how many bits a caption
saves: bits(x) - bits(x | caption) of the test images, with the same noise for both.

``--samples`` grades folders that ``--mode sample`` wrote, of a cascade or of any other model, by their captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.paired_bits import image_bits
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, unguided
from configs.default import get_default_config
from data import ImageDataset, LevelSpace, load_dataset
from data.sources.scene_words import PAIRS, Scene, information_bits, parse_caption, scenes_of
from data.sources.scenes import GEOMETRY
from evaluation.quality import Estimate
from evaluation.samples.sample_batch import draw_batch
from evaluation.scenes import GRADES, SceneReader, chance_levels, grade_estimates, grade_scenes, train_scene_reader
from experiment import TrainedRun, load_run
from experiment.build import build_sampler
from experiment.config import data_root
from experiment.pictures import as_array, save_png
from experiment.rank0_first import as_trained
from experiment.text.pictures import captioned_grid
from experiment.text.prompts import observed_prompts
from experiment.workdir import default_workdir, write_json
from likelihood import mean_and_stderr
from models import Cond, Condition
from runtime.processes.ranks import ALONE

RESULT = Path(__file__).parent / "results" / "scenes.json"
_SHOWN = 16
_READER_STEPS = {"digits": 450, "mnist": 1000}  # docs/data.md says what these read


def prompts_condition(run: TrainedRun, prompts: Sequence[str]) -> Condition:
    """The condition of prompts, one each."""
    conditions = run.conditions
    observed, _ = observed_prompts(run.config, conditions, prompts)
    cond = conditions.tell(observed)
    assert isinstance(cond, Condition)
    return cond


def draw_scenes(run: TrainedRun, scenes: Sequence[Scene], args: argparse.Namespace, *, weight: float) -> Tensor:
    """Samples in [-1, 1] of the captions of scenes, image k from noise stream k, [N, 3, H, W]."""
    config = unguided(run, sampler=args.sampler, num_steps=args.num_steps, guidance_weight=weight)
    sampler = build_sampler(config)
    model, cond = run.sampled_model(sampler, config), prompts_condition(run, [scene.caption for scene in scenes])
    device = next(run.model.parameters()).device
    parts = [
        draw_batch(
            sampler, model, range(k, min(k + args.batch_size, len(scenes))), sample_shape=run.sample_shape,
            seed=args.seed, cond=cond[k : k + args.batch_size].to(device), device=device,
        )[0].x0.cpu()
        for k in tqdm(range(0, len(scenes), args.batch_size), desc=f"draw at {weight:g}", unit="batch")
    ]  # fmt: skip
    return torch.cat(parts)


def obedience(run: TrainedRun, reader: SceneReader, args: argparse.Namespace, weight: float) -> dict[str, Any]:
    """The grades of samples of seen pairs, of held-out pairs, and of seen pairs against captions of other images."""
    report: dict[str, Any] = {}
    for pairs in PAIRS:
        scenes = scenes_of("test", args.num_prompts, pairs=pairs)
        x0 = draw_scenes(run, scenes, args, weight=weight)
        found = reader.read(x0)
        report[pairs] = estimates(grade_scenes(scenes, found))
        if pairs == "seen":
            others = [*scenes[1:], scenes[0]]
            report["shuffled"] = estimates(grade_scenes(others, found))
            report["chance"] = chance_levels(others)
        if args.pictures:
            captions = [scene.caption for scene in scenes[:_SHOWN]]
            save_png(args.pictures / f"scenes_{pairs}.png", captioned_grid(as_array(x0[:_SHOWN], run.kind), captions))
    return report


def read_samples(folder: Path) -> tuple[Tensor, list[Scene]]:
    """Samples that a command wrote, in [-1, 1], [N, 3, H, W], and what was asked for."""
    try:
        with np.load(folder / "samples.npz") as arrays:
            images = torch.from_numpy(arrays["arr_0"]).permute(0, 3, 1, 2)
        asked = [parse_caption(line) for line in (folder / "captions.txt").read_text().splitlines()]
    except (OSError, KeyError, ValueError) as error:
        raise SystemExit(
            f"{folder} holds no samples of captions of scenes ({error}); draw some by --mode sample"
        ) from None
    return LevelSpace(256).encode(images), asked


def grade_folders(folders: Sequence[Path]) -> dict[str, Any]:
    """The grades of samples in folders, all of one size, with chance for their captions."""
    sets = {str(folder): read_samples(folder) for folder in folders}
    shapes = {tuple(images.shape[1:]) for images, _ in sets.values()}
    base = next((name for name, (side, _) in GEOMETRY.items() if shapes == {(3, side, side)}), None)
    if base is None:
        raise SystemExit(
            f"samples must be scenes of one size, 3x16x16 or 3x32x32, got {sorted(shapes)}; grade others apart"
        )
    reader = train_reader(base)
    report: dict[str, Any] = {}
    for folder, (images, asked) in sets.items():
        report[folder] = estimates(grade_scenes(asked, reader.read(images)))
        report[f"chance of {folder}"] = chance_levels(asked)
    return report


def train_reader(base: str) -> SceneReader:
    """A reader of scenes of digits or MNIST, trained here."""
    train = load_dataset("scenes", root=data_root(get_default_config()), split="train", options={"base": base})
    assert isinstance(train, ImageDataset)
    return train_scene_reader(train, num_steps=_READER_STEPS[base])


def estimates(grades: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Each grade's mean with its standard error, for a report."""
    return {name: asdict(one) for name, one in grade_estimates(grades).items()}


def information(run: TrainedRun, held_out: ImageDataset, args: argparse.Namespace) -> Estimate:
    """Bits that a caption saves, bits(x) - bits(x | caption), an image, of the same noise for both."""

    def without(cond: Cond | None) -> Cond:
        assert isinstance(cond, Condition)
        return cond.without()

    how = {"steps_per_image": args.steps_per_image, "batch_size": args.batch_size, "seed": args.seed}
    saved = image_bits(run, held_out, told=without, **how) - image_bits(run, held_out, **how)
    return Estimate(*mean_and_stderr(saved))


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table: a weight of guidance each for every set of prompts."""
    return [
        {"guidance": weight, "prompts": prompts} | cells(grades)
        for weight, one in report["guidance"].items()
        for prompts, grades in one.items()
    ]


def cells(grades: dict[str, Any]) -> dict[str, str]:
    """Grades with their standard errors, or exact ones, in %."""

    def said(one: Any) -> str:
        if isinstance(one, float):
            return f"{100 * one:.1f}"
        return f"{100 * one['value']:.1f} ± {100 * one['stderr']:.1f}"

    return {f"{name}, %": said(grades[name]) for name in GRADES}


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, read, grade, measure, print, write."""
    parser = argparse.ArgumentParser(description="Obedience to captions of scenes.", allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(config="configs/text/scenes.py")
    parser.add_argument("--samples", type=Path, nargs="+", help="grade these folders of --mode sample, and no run")
    parser.add_argument("--step", type=whole(1), default=None, help="the checkpoint; default: the newest")
    parser.add_argument("--weights", type=listed(float), default=[1.0, 2.0], help="of guidance")
    parser.add_argument("--num-prompts", type=whole(2), default=500, help="of each set")
    parser.add_argument("--num-images", type=whole(0), default=200, help="whose bits are measured; 0: none")
    parser.add_argument("--steps-per-image", type=whole(1), default=40, help="of the bound")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=100)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of the first samples")
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args(arguments)
    if args.samples:
        report = grade_folders(args.samples)
        write_json(args.output, report)
        print(table([{"samples": name} | cells(grades) for name, grades in report.items()]))
        return
    workdir = Path(args.workdir or default_workdir(args.config))
    run = load_run(workdir, step=args.step)
    if run.config.data.dataset != "scenes" or run.conditions.text is None:
        raise SystemExit(f"{workdir} holds no model of scenes that is told captions; train configs/text/scenes.py")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    train, held_out = (load_images(run.config, split) for split in ("train", "test"))
    base = "digits" if train.image_shape[1] == GEOMETRY["digits"][0] else "mnist"
    reader = train_scene_reader(train, num_steps=_READER_STEPS[base])
    truth = reader.read(held_out.space.encode(held_out.images))
    report = {
        "step": run.step,
        "parameters": sum(p.numel() for p in run.model.parameters()),
        "sampler": args.sampler,
        "num_steps": args.num_steps,
        "num_prompts": args.num_prompts,
        "reader": estimates(grade_scenes(scenes_of("test", len(held_out)), truth)),
        "guidance": {},
    }
    for weight in args.weights:
        report["guidance"][f"{weight:g}"] = obedience(run, reader, args, weight)
        write_json(args.output, report)
    lines = []
    if args.num_images:
        held_out = as_trained(ALONE, run.config, workdir, held_out.subset(min(args.num_images, len(held_out))))
        assert isinstance(held_out, ImageDataset)
        saved = information(run, held_out, args)
        report["information"] = {"saved_bits": asdict(saved), "most_bits": information_bits()}
        write_json(args.output, report)
        most = f"{information_bits():.2f}"
        lines.append(f"a caption saves {saved.value:.2f} ± {saved.stderr:.2f} bits an image, at most {most}")
    print(table(rows(report)))
    for name in GRADES:
        one = report["reader"][name]
        print(f"the reader itself, {name}: {100 * one['value']:.1f} ± {100 * one['stderr']:.1f} % of real test scenes")
    for line in lines:
        print(line)


if __name__ == "__main__":
    run_benchmark(main)
