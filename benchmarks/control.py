"""Does a ControlNet listen: ``python -m benchmarks.control --workdir runs/control/digits_edges``.

For each checkpoint, samples of the hints of test images: the F1 of their edges against their own hint, and against that
of the next image, which says how much of it is chance; the frozen model's samples, which know no hint, are the first
row. Scenes are read, and graded by their captions. Then the bits that a hint saves, bits(x) - bits(x | hint), of the
same noise for both. ``--beside`` names a model whose network is told the hint as an image, trained as the base was.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.options import output, run_benchmark, whole
from benchmarks.paired_bits import image_bits
from benchmarks.scenes import cells, train_reader
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, unguided
from data import Edges, ImageDataset, LevelSpace
from data.sources.scene_words import scenes_of
from data.sources.scenes import GEOMETRY
from evaluation.hints import edge_f1
from evaluation.quality import Estimate
from evaluation.samples.sample_batch import draw_batch
from evaluation.scenes import SceneReader, grade_estimates, grade_scenes
from experiment import TrainedRun, load_run
from experiment.build import build_sampler
from experiment.checkpoints.folder import checkpoint_folders, step_of
from experiment.pictures import image_grid, save_figure, save_png
from experiment.rank0_first import as_trained
from experiment.workdir import default_workdir, write_json
from likelihood import mean_and_stderr
from models import Cond, Condition
from models.backbones import ControlledBackbone
from runtime.processes.ranks import ALONE

RESULT = Path(__file__).parent / "results" / "control.json"
_SHOWN = 12
_TIMED = 5  # steps of each, the fastest of which counts


@dataclass(frozen=True)
class Subject:
    """A model that is told edges, or would be.

    Attributes:
        name: As the table has it.
        run: The model.
        told: What becomes of its condition.
    """

    name: str
    run: TrainedRun
    told: Callable[[Cond | None], Cond | None] = lambda cond: cond


def without_hint(cond: Cond | None) -> Cond:
    """All else that is told, so that a ControlNet adds nothing."""
    assert isinstance(cond, Condition)
    return cond.without(part="image")


def draw(subject: Subject, held_out: ImageDataset, args: argparse.Namespace) -> Tensor:
    """Samples of the conditions of the first images, in [-1, 1], [N, C, H, W]."""
    run, config = subject.run, unguided(subject.run, sampler=args.sampler, num_steps=args.num_steps)
    sampler, device = build_sampler(config), next(run.model.parameters()).device
    model, parts = run.sampled_model(sampler, config), []
    for k in range(0, args.num_samples, args.batch_size):
        here = slice(k, min(k + args.batch_size, args.num_samples))
        cond = subject.told(run.conditions.tell(run.conditions.observe_in(held_out, here)))
        result, _ = draw_batch(
            sampler, model, range(here.start, here.stop), sample_shape=run.sample_shape, seed=args.seed, cond=cond,
            device=device,
        )  # fmt: skip
        parts.append(result.x0.cpu())
    return torch.cat(parts)


def edges_of(run: TrainedRun, levels: Tensor) -> Tensor:
    """Edges of grey levels, by the rule of the run's hint."""
    maker = next(maker for maker in run.conditions.images if isinstance(maker, Edges))
    return maker.observe(levels, run.conditions.kind)  # pyright: ignore[reportArgumentType]


def listens(
    subject: Subject, held_out: ImageDataset, args: argparse.Namespace, reader: SceneReader | None = None
) -> dict[str, Any]:
    """The F1 of samples against their own hint and against that of the next image; and the grades of scenes."""
    x0 = draw(subject, held_out, args)
    samples = subject.run.decode(x0)
    found, asked = edges_of(subject.run, samples), edges_of(subject.run, held_out.images[: args.num_samples])
    pairs = {"own": asked, "unrelated": asked.roll(1, 0)}
    scores = {name: asdict(Estimate(*mean_and_stderr(edge_f1(found, one)))) for name, one in pairs.items()}
    if args.pictures and subject.name != "frozen model":
        save_png(args.pictures / f"{subject.name.replace(' ', '_')}.png", panel(held_out, asked, samples))
    if reader is not None:
        grades = grade_estimates(grade_scenes(scenes_of("test", args.num_samples), reader.read(x0)))
        scores["grades"] = {name: asdict(one) for name, one in grades.items()}
    return scores


def panel(held_out: ImageDataset, asked: Tensor, samples: Tensor) -> np.ndarray:
    """Rows of images, their edges, and samples of these."""
    images, drawn = held_out.images[:_SHOWN], samples[:_SHOWN]
    edges = 255 * asked[:_SHOWN].expand(-1, images.shape[1], -1, -1)
    space = LevelSpace(held_out.num_levels or 256)
    rows = [space.pixels(space.encode(images)), edges.permute(0, 2, 3, 1).numpy(), space.pixels(space.encode(drawn))]
    return image_grid(np.concatenate([one.astype(np.uint8) for one in rows]), columns=_SHOWN)


def step_seconds(subject: Subject, held_out: ImageDataset, batch_size: int) -> float:
    """Seconds of a forward and a backward pass of the parameters that are trained."""
    run = subject.run
    images = held_out.images[:batch_size]
    cond = run.conditions.tell(run.conditions.observe_in(held_out, slice(0, batch_size)))
    backbone, device = run.model.backbone, next(run.model.parameters()).device
    x_t, cond = run.encode(images).to(device), None if cond is None else cond.to(device)
    t = torch.full((len(x_t),), 0.5, dtype=torch.float64, device=device)
    backbone.requires_grad_()
    seconds = []
    for _ in range(_TIMED):
        began = time.perf_counter()
        run.model(x_t, t, cond=cond).eps.square().mean().backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - began)
    backbone.requires_grad_(False)
    return min(seconds)


def bits_of(subject: Subject, held_out: ImageDataset, args: argparse.Namespace) -> Tensor:
    """The bits/dim of each of the first images, float64 [N]."""
    some = held_out.subset(min(args.num_images, len(held_out)))
    how = {"steps_per_image": args.steps_per_image, "batch_size": args.batch_size, "seed": args.seed}
    return image_bits(subject.run, some, told=subject.told, **how) / some.num_dims


def measure(
    subject: Subject, held_out: ImageDataset, saved: Tensor, args: argparse.Namespace, reader: SceneReader | None
) -> dict[str, Any]:
    """F1 and bits/dim that the hint saves, and the grades of scenes."""
    f1 = listens(subject, held_out, args, reader)
    return {"f1": f1, "saved_bits_per_dim": asdict(Estimate(*mean_and_stderr(saved)))}


def cost(subject: Subject, held_out: ImageDataset, args: argparse.Namespace) -> dict[str, Any]:
    """Parameters that are trained, their share of all, and seconds of a step."""
    network = subject.run.model.backbone
    size = sum(p.numel() for p in network.parameters())
    frozen = sum(p.numel() for p in network.base.parameters()) if isinstance(network, ControlledBackbone) else 0
    seconds = step_seconds(subject, held_out, min(args.batch_size, 64))
    return {"trained": size, "share": size / (size + frozen), "seconds": seconds}


def curve(workdir: Path, held_out: ImageDataset, args: argparse.Namespace) -> list[dict[str, Any]]:
    """The F1 of each checkpoint."""
    steps = sorted(step_of(folder) for folder in checkpoint_folders(workdir / "checkpoints"))
    return [
        {"step": step, "f1": listens(Subject(f"step {step}", load_run(workdir, step=step)), held_out, args)}
        for step in steps
    ]


def save_curve(path: Path, points: Sequence[dict[str, Any]]) -> None:
    """F1 over training as a picture."""
    figure = Figure(figsize=(5, 3), layout="constrained")
    axes = figure.add_subplot()
    for name, label in (("own", "its own hint"), ("unrelated", "another image's hint")):
        values, errors = ([one["f1"][name][key] for one in points] for key in ("value", "stderr"))
        axes.errorbar([one["step"] for one in points], values, errors, label=label, marker="o", markersize=3)
    axes.set(xlabel="step", ylabel="F1 of edges", ylim=(0, 1))
    axes.legend(frameon=False)
    save_figure(path, figure)


def scene_base(run: TrainedRun) -> str:
    """The digits that a run's scenes are made of."""
    return next(name for name, (side, _) in GEOMETRY.items() if run.sample_shape == (3, side, side))


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table."""

    def said(one: dict[str, float], digits: int = 3) -> str:
        return f"{one['value']:.{digits}f} ± {one['stderr']:.{digits}f}"

    first = report["cost"]["control"]["seconds"]

    def of_cost(name: str) -> dict[str, str]:
        one = report["cost"].get(name)
        if one is None:
            return dict.fromkeys(("trained parameters", "share", "seconds a step, over the control's"), "–")
        return {
            "trained parameters": f"{one['trained']:,}",
            "share": f"{100 * one['share']:.0f} %",
            "seconds a step, over the control's": f"{one['seconds'] / first:.2f}",
        }

    return [
        {
            "model": name,
            "F1, own hint": said(one["f1"]["own"]),
            "F1, unrelated": said(one["f1"]["unrelated"]),
            "saved, bits/dim": said(one["saved_bits_per_dim"], 4),
        }
        | of_cost(name)
        | (cells(one["f1"]["grades"]) if "grades" in one["f1"] else {})
        for name, one in report["models"].items()
    ]


def curve_rows(points: Sequence[dict[str, Any]]) -> list[dict[str, str]]:
    """The lines of the table of F1 over training."""
    return [
        {"step": str(one["step"])} | {name: f"{value['value']:.3f}" for name, value in one["f1"].items()}
        for one in points
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, compare, measure, print, write."""
    parser = argparse.ArgumentParser(description="Obedience to edges.", allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(config="configs/control/digits_edges.py")
    parser.add_argument("--beside", default="", help="the work directory of a model that is told the hint as an image")
    parser.add_argument("--num-samples", type=whole(2), default=200)
    parser.add_argument("--num-images", type=whole(2), default=200, help="whose bits are measured")
    parser.add_argument("--steps-per-image", type=whole(1), default=40, help="of the bound")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=100)
    parser.add_argument("--seed", type=whole(0), default=0)
    parser.add_argument("--pictures", type=Path, help="a folder for pictures of samples and of F1 over training")
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args(arguments)
    workdir = Path(args.workdir or default_workdir(args.config))
    run = load_run(workdir)
    if not isinstance(run.model.backbone, ControlledBackbone) or "edges" not in run.config.data.condition:
        raise SystemExit(f"{workdir} holds no ControlNet of edges; train configs/control/digits_edges.py")
    if args.pictures:
        args.pictures.mkdir(parents=True, exist_ok=True)
    held_out = as_trained(ALONE, run.config, workdir, load_images(run.config, "test"))
    assert isinstance(held_out, ImageDataset)
    args.num_samples = min(args.num_samples, len(held_out))
    frozen = Subject("frozen model", run, without_hint)
    subjects = [frozen, Subject("control", run)]
    if args.beside:
        subjects.append(Subject("hint as an image", load_run(args.beside)))
    report: dict[str, Any] = {"step": run.step, "sampler": args.sampler, "num_steps": args.num_steps}
    report |= {"num_samples": args.num_samples, "num_images": min(args.num_images, len(held_out))}
    bits = [bits_of(one, held_out, args) for one in subjects]
    reader = train_reader(scene_base(run)) if run.config.data.dataset == "scenes" else None
    report["models"] = {
        one.name: measure(one, held_out, bits[0] - its, args, reader) for one, its in zip(subjects, bits, strict=True)
    }
    report["cost"] = {one.name: cost(one, held_out, args) for one in subjects[1:]}
    report["curve"] = curve(workdir, held_out, args)
    write_json(args.output, report)
    if args.pictures:
        save_curve(args.pictures / "f1.png", report["curve"])
    print(table(rows(report)))
    print(table(curve_rows(report["curve"])))


if __name__ == "__main__":
    run_benchmark(main)
