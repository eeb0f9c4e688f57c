"""Recognition of class-conditional samples against the weight of guidance: ``python -m benchmarks.guidance``.

Draws samples of every class with each weight, from the same noise, and measures two things that pull apart: the share
that a classifier recognises as the class asked for, and the distance from real images of that class, which grows when
guidance makes all samples alike.
"""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, load_named_run, unguided
from data import LevelSpace
from evaluation.quality import (
    Estimate,
    frechet_distance,
    grouped_estimate,
    sliced_wasserstein,
    train_feature_classifier,
)
from evaluation.samples.sample_batch import draw_batch
from experiment import TrainedRun
from experiment.build import build_sampler
from experiment.pictures import image_grid, save_png
from experiment.workdir import write_json
from likelihood import mean_and_stderr
from models import ScoreModel
from samplers import Sampler

RESULT = Path(__file__).parent / "results" / "guidance.json"


class Judge(Protocol):
    """A classifier of images, such as ``DigitClassifier``."""

    def __call__(self, x: Tensor) -> Tensor:
        """Logits, [N, classes]."""
        ...

    def features(self, x: Tensor) -> Tensor:
        """Features, [N, D]."""
        ...


@dataclass(frozen=True)
class Measured:
    """Measures of samples of known classes.

    Attributes:
        recognised: Share that the judge gives the class asked for.
        frechet: Squared Frechet distance of features from real images of the class, mean over classes.
        sliced: Squared sliced Wasserstein distance of pixels, likewise.
    """

    recognised: Estimate
    frechet: Estimate
    sliced: Estimate


class WithinClass:
    """Compares samples with real images of the class that was asked for.

    Distances are biased upwards by an amount that depends on the number of samples: all are of groups of one size.

    Args:
        judge: Names classes and gives features.
        real: Real images, [M, ...].
        labels: Their classes, int64 [M]; every class 0 .. C - 1 is there.
        group_size: Samples of a class in a group.
        num_projections: Directions of the sliced Wasserstein distance.
    """

    def __init__(
        self, judge: Judge, real: Tensor, labels: Tensor, *, group_size: int, num_projections: int = 200
    ) -> None:
        self.judge, self.group_size, self.num_projections = judge, group_size, num_projections
        self.real = [real[labels == label] for label in range(int(labels.max()) + 1)]
        self.real_features = [judge.features(images) for images in self.real]

    def __call__(self, x0: Float[Tensor, "n *shape"], labels: Int64[Tensor, " n"]) -> Measured:
        """Measure samples; of each class as many whole groups as there are count for the distances."""
        right = (self.judge(x0).argmax(1) == labels).double()
        found = [self._distances(x0[labels == label], label) for label in range(len(self.real))]
        frechet, sliced = zip(*found, strict=True)
        return Measured(Estimate(*mean_and_stderr(right)), _mean(frechet), _mean(sliced))

    def _distances(self, mine: Tensor, label: int) -> tuple[Estimate, Estimate]:
        count = len(mine) // self.group_size
        # each group from all of them: neighbours in a data set may be of one writer
        mine = torch.cat([mine[k : count * self.group_size : count] for k in range(count)])

        def sliced(group: Tensor) -> float:
            return sliced_wasserstein(group, self.real[label], num_projections=self.num_projections).value

        size = self.group_size
        estimate = partial(grouped_estimate, group_size=size, num_blocks=min(36, size))
        frechet = partial(frechet_distance, features_b=self.real_features[label])
        return estimate(frechet, self.judge.features(mine)), estimate(sliced, mine)


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """Mean of independent estimates."""
    stderr = math.sqrt(sum(one.stderr**2 for one in estimates)) / len(estimates)
    return Estimate(sum(one.value for one in estimates) / len(estimates), stderr)


def settings(args: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """The settings that are compared: a name of each, and its keys of ``config.sampling``."""
    if len(args.interval) not in (0, 2):
        raise SystemExit(f"--interval must be two numbers of sigma / alpha, got {args.interval}; try 0.1,2")
    for weight in args.weights:
        yield f"w = {weight:g}", {"guidance_weight": weight}
    for weight in args.weights if args.interval else ():
        if weight > 1:
            low, high = args.interval
            keys = {"guidance_weight": weight, "guidance_interval": (low, high)}
            yield f"w = {weight:g} for sigma / alpha of {low:g} to {high:g}", keys
    for weight in args.weights if args.reference else ():
        if weight > 1:
            keys = {"guidance_weight": weight, "guidance_reference": args.reference}
            yield f"w = {weight:g} away from {Path(args.reference).name}", keys
    for weight in args.weights if args.rescale else ():
        if weight > 1:
            keys = {"guidance_weight": weight, "guidance_rescale": args.rescale}
            yield f"w = {weight:g}, rescaled by {args.rescale:g}", keys
    for weight in args.cfgpp:
        yield f"CFG++, lambda = {weight:g}", {"guidance_weight": weight, "guidance_schedule": "cfg++"}
    for scale in args.scales if args.classifier else ():
        yield f"classifier, scale {scale:g}", {"classifier": args.classifier, "classifier_scale": scale}


def draw(
    run: TrainedRun, model: ScoreModel, sampler: Sampler, *, per_class: int, batch_size: int
) -> tuple[Tensor, Tensor, float]:
    """Samples of all classes in turn, as they are written: pixels in [-1, 1] of grey levels [N, ...], classes [N], and
    NFE a sample.

    Sample k has the noise of stream (0, k), whatever guides it.
    """
    device, levels = next(run.model.parameters()).device, run.kind.num_levels
    assert levels is not None
    labels = torch.arange(per_class * run.kind.num_classes) % run.kind.num_classes
    parts, nfe = [], 0
    for first in range(0, len(labels), batch_size):
        index = range(first, min(first + batch_size, len(labels)))
        cond = labels[index.start : index.stop]
        result, _ = draw_batch(sampler, model, index, sample_shape=run.sample_shape, cond=cond, device=device)
        parts.append(LevelSpace(levels).encode(run.decode(result.x0.cpu())))
        nfe += result.nfe * len(index)
    return torch.cat(parts), labels, nfe / len(labels)


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table, the held-out images last."""

    def written(one: dict[str, float], scale: float, digits: int) -> str:
        return f"{one['value'] * scale:.{digits}f} ± {one['stderr'] * scale:.{digits}f}"

    return [
        {
            "": point["label"],
            "NFE": f"{point['nfe']:g}" if point["nfe"] else "",
            "recognised, %": written(point["recognised"], 100, 1),
            "Fréchet within the class": written(point["frechet"], 1, 2),
            "sliced Wasserstein within the class, times 1000": written(point["sliced"], 1000, 1),
        }
        for point in (*report["points"], {"label": "held-out images", "nfe": 0} | report["held_out"])
    ]


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Recognition against the weight of guidance.", allow_abbrev=False)
    add_run(parser)
    parser.set_defaults(config="configs/vp/digits_class.py")
    parser.add_argument("--weights", type=listed(float), default=[0, 1, 1.5, 2, 3, 5], help="of guidance; 1: none")
    parser.add_argument(
        "--interval", type=listed(float), default=[], help="lo,hi of sigma / alpha: also guide only there"
    )
    parser.add_argument("--reference", default="", help="another run, as in runs/x@1000: also guide away from it")
    parser.add_argument("--rescale", type=float, default=0.0, help="share, such as 0.7: also guide with rescaled x0")
    parser.add_argument("--cfgpp", type=listed(float), default=[], help="lambda of CFG++, such as 0.6")
    parser.add_argument("--classifier", default="", help="work directory of a classifier, for guidance by it")
    parser.add_argument("--scales", type=listed(float), default=[1, 2, 5], help="of that classifier's gradient")
    parser.add_argument(
        "--num-images", type=whole(0), default=0, help="real training images, for classifier and distances; 0: all"
    )
    parser.add_argument("--per-class", type=whole(3), default=60, help="samples of each class")
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num-steps", type=whole(1), default=50)
    parser.add_argument("--batch-size", type=whole(1), default=120)
    parser.add_argument("--pictures", type=Path, help="folder for a PNG of each setting, a row a class; default: none")
    parser.add_argument("--output", type=output, default=RESULT)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Draw, measure, print, write."""
    args = _parse(arguments)
    run = load_named_run(args)
    if not run.config.model.class_conditional or not run.conditions.only_labels:
        raise SystemExit(
            "the benchmark needs a run that is told classes alone; try --config configs/vp/digits_class.py"
        )
    train, held_out = load_images(run.config, "train"), load_images(run.config, "test")
    train = train.subset(args.num_images) if args.num_images else train
    if len(train.labels.unique()) < run.kind.num_classes:
        raise SystemExit(
            f"the benchmark needs images of all classes, got none of some in {len(train)}; raise --num-images"
        )
    # all of them first: what cannot be built is said before anything is drawn
    compared = []
    for label, keys in settings(args):
        config = unguided(run, sampler=args.sampler, num_steps=args.num_steps, **keys)
        sampler = build_sampler(config)
        compared.append((label, keys, run.sampled_model(sampler, config), sampler))
    judge, accuracy = train_feature_classifier(train, held_out)
    group_size = min(args.per_class, int(held_out.labels.bincount().min()))
    measure = WithinClass(judge, train.space.encode(train.images), train.labels, group_size=group_size)
    points: list[dict[str, Any]] = []
    for label, keys, model, sampler in tqdm(compared, unit="setting", dynamic_ncols=True):
        x0, labels, nfe = draw(run, model, sampler, per_class=args.per_class, batch_size=args.batch_size)
        points.append({"label": label, "keys": keys, "nfe": nfe} | asdict(measure(x0, labels)))
        if args.pictures:
            args.pictures.mkdir(parents=True, exist_ok=True)
            name = f"{train.name}_{re.sub('[^a-z0-9.]+', '_', label.lower())}.png"
            save_png(args.pictures / name, class_grid(x0, labels, train.space))
    report = {
        "dataset": train.name,
        "config": args.config,
        "step": run.step,
        "sampler": args.sampler,
        "num_steps": args.num_steps,
        "num_images": len(train),
        "per_class": args.per_class,
        "group_size": group_size,
        "judge_accuracy": accuracy,
        "points": points,
        "held_out": asdict(measure(train.space.encode(held_out.images), held_out.labels)),
    }
    print(table(rows(report)))
    write_json(args.output, report)


def class_grid(x0: Tensor, labels: Tensor, space: LevelSpace, *, columns: int = 10) -> Any:
    """The first samples of each class in a row of their own, uint8 [rows, columns, 3]."""
    first = [torch.nonzero(labels == label).flatten()[:columns] for label in range(int(labels.max()) + 1)]
    return image_grid(space.pixels(x0[torch.cat(first)]), columns=len(first[0]))


if __name__ == "__main__":
    run_benchmark(main)
