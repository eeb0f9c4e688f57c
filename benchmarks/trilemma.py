"""Quality, coverage and speed of many-step and few-step samplers, side by side: ``python -m benchmarks.trilemma``.

Fast sampling, good samples and all of the data's modes are hard to have at once (Xiao et al. 2022). Every row draws as
many images from the same noise streams, of one diffusion model by its samplers, or of a run of its own: rectified flow
and models that were distilled to few steps. Times are taken in turn, each row once a round, and are those of the
processor where PyTorch has one thread.

Writes ``benchmarks/results/trilemma.json``, ``docs/images/trilemma.png`` and the table between two markers in
``docs/few_steps.md``; of other data than digits ``trilemma_<data set>``.
"""

from __future__ import annotations

import argparse
import math
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import run_benchmark, whole
from benchmarks.sample_measures import SampleMeasures
from benchmarks.timing import in_turn, seconds, spread
from benchmarks.trained import add_run, load_images, load_named_run, unguided
from benchmarks.trilemma_report import rows_of_table, write_report
from data import ImageDataset
from evaluation.quality import Estimate
from evaluation.samples.sample_batch import draw_batch
from experiment import TrainedRun, load_run
from experiment.build import build_sampler, named_device
from experiment.from_checkpoints import as_sampled_model, load_trained, trained_kind
from experiment.guidance import sampled_consistency_model
from experiment.saved_config import saved_config
from likelihood import mean_and_stderr
from models import ConsistencyModel

Draw = Callable[[range], Tensor]
BASE = "base"  # the diffusion model
# options that name other runs, and what these are
RUNS = {
    "flow": "a rectified flow",
    "consistency": "a consistency model",
    "progressive": "a student of 4 steps by progressive distillation",
    "dmd": "a one-step generator by distribution matching",
}


@dataclass(frozen=True)
class Row:
    """A way to draw images.

    Attributes:
        label: As the table has it.
        of: The run, by its option; ``BASE`` for the diffusion model.
        sampler: The sampler's name in the registry.
        settings: Keys of ``config.sampling``, in place of the run's.
        likelihood: What tells the model's bits/dim, by its name in the registry; None of a model that is no density.
    """

    label: str
    of: str
    sampler: str
    settings: dict[str, Any]
    likelihood: str | None


# grids and orders are those that docs/samplers.md finds best at so many calls; a consistency model has its own
ROWS = (
    Row("ancestral, 1000 steps", BASE, "ancestral", {"num_steps": 1000, "grid": "uniform"}, "vlb"),
    Row("DDIM, 50 steps", BASE, "ddim", {"num_steps": 50, "grid": "uniform"}, "ode"),
    Row("DPM-Solver++ 2M, 20 steps", BASE, "dpm_solver_pp",
        {"num_steps": 20, "grid": "log_snr", "options": "variant=2M"}, "ode"),
    Row("UniPC, 10 steps", BASE, "unipc", {"num_steps": 10, "grid": "log_snr", "options": "order=3"}, "ode"),
    Row("rectified flow, 10 Euler steps", "flow", "ddim", {"num_steps": 10, "grid": "uniform"}, "ode"),
    Row("consistency, 1 step", "consistency", "consistency", {"num_steps": 1}, None),
    Row("consistency, 2 steps", "consistency", "consistency", {"num_steps": 2}, None),
    # where its steps of DDIM end is no posterior mean
    Row("progressive, 4 steps", "progressive", "ddim", {"num_steps": 4, "grid": "uniform"}, None),
    Row("distribution matching, 1 step", "dmd", "consistency", {"num_steps": 1}, None),
)  # fmt: skip
ANSWERS = {"consistency": "consistency", "progressive": "steps", "dmd": "generator"}  # ``model.answers`` of the others
DENSITIES = {row.of for row in ROWS if row.likelihood}  # of the others there is no score model
_MOST_GROUP = 2000  # samples; more make more groups
COMPARED_WITH = "DDIM, 50 steps"  # for the ratio of times


def drawer(row: Row, run: TrainedRun) -> Draw:
    """A function that draws images, x0 [N, C, H, W], by their numbers: image k has noise stream (0, k)."""
    # where a consistency model starts is chosen with it
    own = {"options": run.config.sampling.options} if row.sampler == "consistency" else {}
    config = unguided(run, sampler=row.sampler, **own, **row.settings)
    sampler, device = build_sampler(config), next(run.model.parameters()).device
    model: Any = run.model
    if isinstance(model, ConsistencyModel):
        model = sampled_consistency_model(config, model, run.kind)
    else:
        model = run.sampled_model(sampler, config)

    def draw(index: range) -> Tensor:
        return draw_batch(sampler, model, index, sample_shape=run.sample_shape, device=device)[0].x0.cpu()

    return draw


def network_calls(run: TrainedRun, draw: Draw) -> int:
    """The number of times that the network is called for a batch, counted at the network."""
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    handle = run.model.backbone.register_forward_hook(count)
    draw(range(1))
    handle.remove()
    return calls


def in_batches(draw: Draw, num_samples: int, batch_size: int, *, name: str) -> Tensor:
    """Images 0 .. num_samples - 1."""
    starts = tqdm(range(0, num_samples, batch_size), desc=name, unit="batch", leave=False, dynamic_ncols=True)
    return torch.cat([draw(range(k, min(k + batch_size, num_samples))) for k in starts])


def times_of(draws: dict[str, Draw], *, batch_size: int, rounds: int, processor: bool) -> dict[str, dict[str, Any]]:
    """Seconds of each row for 1,000 images in batches and for one image alone, in turn.

    Batches of one size take one time each, so that one is timed for all: 1000 / batch_size of them make 1,000 images,
    as a number that need not be whole. Every row must have drawn before, as both sizes.
    """
    works = {
        (label, size): partial(seconds, partial(draw, range(size)), processor=processor)
        for label, draw in draws.items()
        for size in (batch_size, 1)
    }
    found = in_turn(works, rounds)
    base = found.get((COMPARED_WITH, batch_size))
    report: dict[str, dict[str, Any]] = {}
    for label in draws:
        taken = found[label, batch_size]
        report[label] = {
            "seconds_per_1000": spread([1000 / batch_size * one for one in taken]),
            "seconds_of_one": spread(found[label, 1]),
        }
        if base is not None:
            report[label]["times_faster"] = spread([b / a for a, b in zip(taken, base, strict=True)])
    return report


def bits_of(run: TrainedRun, likelihood: str, held_out: ImageDataset, num_images: int) -> dict[str, Any]:
    """Bits/dim of the run's evaluation if it has them, else measured on the first held-out images."""
    if likelihood in run.report and run.report["split"] == held_out.split:
        kept = run.report[likelihood]
        found, num_images = Estimate(kept["bits_per_dim"], kept["stderr"]), run.report["num_images"]
    else:
        num_images = min(num_images, len(held_out))
        bits = run.bits_per_dim(held_out.images[:num_images], likelihood=likelihood, progress=False)
        found = Estimate(*mean_and_stderr(bits))
    return asdict(found) | {"num_images": num_images, "by": likelihood}


def load_map(workdir: Path) -> TrainedRun:
    """A run of a model that is no density, whatever it is; ``load_run`` is for score models alone."""
    config, device = saved_config(workdir), named_device("auto")
    kind = trained_kind(config, workdir, device)
    loaded, step = load_trained(config, workdir, kind, device)
    model: Any = as_sampled_model(loaded, workdir)
    return TrainedRun(model, kind, config, step)


def load_runs(args: argparse.Namespace) -> dict[str, TrainedRun]:
    """The runs that the options name.

    Raises:
        ValueError: If they are of different images, or are told something.
    """
    runs = {BASE: load_named_run(args)}
    for name in RUNS:
        if workdir := getattr(args, name):
            runs[name] = load_run(workdir) if name in DENSITIES else load_map(Path(workdir))
    for name, run in runs.items():
        answers = run.config.model.get("answers", "posterior_mean")
        if name in ANSWERS and answers != ANSWERS[name]:
            raise ValueError(
                f"--{name} must be {RUNS[name]}, model.answers={ANSWERS[name]}, got model.answers={answers}; name "
                "another run"
            )
        if run.config.data.dataset != runs[BASE].config.data.dataset or run.sample_shape != runs[BASE].sample_shape:
            raise ValueError(
                f"--{name} must be of the {runs[BASE].config.data.dataset} {list(runs[BASE].sample_shape)} of the "
                f"diffusion model, got {run.config.data.dataset} {list(run.sample_shape)}; name another run"
            )
        if run.config.model.class_conditional or not run.conditions.only_labels:
            raise ValueError(f"{name} must be a run that is told nothing; train it with model.class_conditional=false")
    return runs


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="Quality, coverage and speed of samplers.", allow_abbrev=False)
    add_run(parser)
    for name, said in RUNS.items():
        parser.add_argument(f"--{name}", default="", help=f"work directory of {said}; default: no such rows")
    parser.add_argument("--num-samples", type=whole(6), default=1000, help="rounded up to whole groups")
    parser.add_argument("--batch-size", type=whole(2), default=120)
    parser.add_argument("--rounds", type=whole(1), default=5, help="times that each row is timed, in turn")
    parser.add_argument("--num-images", type=whole(2), default=100, help="whose bits/dim are measured, if they must be")
    parser.add_argument("--threads", type=whole(1, 4096), default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, default=".", help="under which benchmarks/results and docs are written")
    return parser.parse_args(arguments)


def _shown(workdir: Path) -> str:
    return workdir.name if workdir.is_absolute() else str(workdir)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure, time, print, write."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    runs = load_runs(args)
    train, held_out = (load_images(runs[BASE].config, split) for split in ("train", "test"))
    measures = SampleMeasures(train, held_out, group_size=min(args.num_samples, len(held_out), _MOST_GROUP))
    num_samples = math.ceil(args.num_samples / measures.group_size) * measures.group_size
    rows, draws, bits, points = [row for row in ROWS if row.of in runs], {}, {}, []
    for row in tqdm(rows, unit="row", dynamic_ncols=True):
        run = runs[row.of]
        draws[row.label] = draw = drawer(row, run)
        point: dict[str, Any] = {"label": row.label, "of": row.of, "nfe": network_calls(run, draw)}
        point["measures"] = measures(in_batches(draw, num_samples, args.batch_size, name=row.label))
        if row.likelihood and (row.of, row.likelihood) not in bits:
            bits[row.of, row.likelihood] = bits_of(run, row.likelihood, held_out, args.num_images)
        points.append(point | {"bits": bits.get((row.of, row.likelihood))})
    device = next(runs[BASE].model.parameters()).device
    processor = args.threads == 1 and device.type == "cpu"
    times = times_of(draws, batch_size=args.batch_size, rounds=args.rounds, processor=processor)
    report = {
        "dataset": train.name,
        "config": args.config,
        "steps": {name: run.step for name, run in runs.items()},
        # as the page's command names them, which shows no folders of this machine
        "runs": {name: _shown(Path(getattr(args, name))) for name in runs if name != BASE},
        "num_samples": num_samples,
        "classifier_accuracy": measures.accuracy,
        "torch": torch.__version__,
        "threads": args.threads,
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "clock": "processor" if processor else "wall",
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "left_out": [row.label for row in ROWS if row.of not in runs],
        **measures.about(),
        "rows": [point | times[point["label"]] for point in points],
    }
    print(rows_of_table(report))
    for label in report["left_out"]:
        print(f"left out, since its run was not named: {label}")
    write_report(report, args.output)


if __name__ == "__main__":
    run_benchmark(main)
