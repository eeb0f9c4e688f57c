"""Quality of samples against network calls, every sampler on one network: ``python -m benchmarks.quality``.

The network is that of ``configs/vp/digits.py``, trained first if its work directory has no checkpoint. Writes
``benchmarks/results/quality.json``, ``docs/images/quality.png`` and the tables between two markers in
``docs/samplers.md``.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.images import load_images
from benchmarks.quality_report import write_report
from commands.train import train
from configs.default import get_default_config
from data import ImageDataset
from evaluation.quality import (
    Estimate,
    frechet_distance,
    grouped_estimate,
    sliced_wasserstein,
    train_feature_classifier,
)
from experiment.build import bound_x0, pick_device
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from experiment.workdir import check_for_use, default_workdir
from models import GaussianMixtureScoreModel, ScoreModel
from samplers import Sampler, available_samplers, make_sampler
from sde_lib import SDE, NoiseStreams

BUDGETS = (5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Entry:
    """A line of the figure.

    Attributes:
        label: What it is called there.
        name: The sampler's name in the registry.
        options: The sampler's own options.
        grid: Its time grid.
        budgets: Numbers of network calls; the sampler takes as many steps as they pay for.
        tolerances: For a sampler that chooses its own steps: values of rtol = atol instead.
    """

    label: str
    name: str
    options: dict[str, Any] = field(default_factory=dict)
    grid: str = "uniform"
    budgets: tuple[int, ...] = BUDGETS
    tolerances: tuple[float, ...] = ()


# The grid matters as much as the order. Those of many orders stand on Lu et al. 2022's, equal steps in log-SNR.
ENTRIES = (
    Entry("ancestral", "ancestral", budgets=(*BUDGETS, 200, 1000)),
    Entry("reverse diffusion", "reverse_diffusion"),
    Entry("Euler-Maruyama", "euler_maruyama"),
    Entry("predictor-corrector", "predictor_corrector"),
    # it needs many calls: with few it never leaves the noise
    Entry("annealed Langevin", "annealed_langevin", {"steps_per_level": 1}, "log_snr", (20, 50, 100, 200)),
    Entry("DDIM", "ddim"),
    Entry("DDIM, quadratic", "ddim", grid="quadratic"),
    Entry("DDIM, eta = 0.5", "ddim", {"eta": 0.5}),
    Entry("flow, RK4", "probability_flow", {"solver": "rk4"}, "log_snr"),
    Entry("flow, dopri5", "probability_flow", {"solver": "dopri5"}, tolerances=(1e-1, 3e-2, 1e-2, 1e-3, 1e-4)),
    Entry("Heun, Karras", "heun", grid="karras"),
    Entry("Heun", "heun", grid="log_snr"),
    Entry("DPM-Solver++ 2M, quadratic", "dpm_solver_pp", {"variant": "2M"}, "quadratic"),
    Entry("DPM-Solver++ 2M", "dpm_solver_pp", {"variant": "2M"}, "log_snr"),
    Entry("DPM-Solver++ 2S", "dpm_solver_pp", {"variant": "2S"}, "log_snr"),
    Entry("DPM-Solver++ 3M", "dpm_solver_pp", {"variant": "3M"}, "log_snr"),
    Entry("SDE-DPM-Solver++ 2M", "dpm_solver_pp", {"variant": "2M", "stochastic": True}, "log_snr"),
    Entry("UniPC, order 2", "unipc", {"order": 2}, "log_snr"),
    Entry("UniPC, order 3", "unipc", {"order": 3}, "log_snr"),
)


@dataclass(frozen=True)
class Point:
    """One sampler at one setting.

    Attributes:
        label: The entry's label.
        grid: Its time grid; empty where it chose its own steps.
        setting: ``num_steps=20``, or the tolerance.
        budget: Network calls it was allowed, or None where it chose its own steps.
        nfe: Network calls it made, counted at the network; the mean over batches.
        frechet: Squared Frechet distance of features.
        sliced: Squared sliced Wasserstein distance of pixels.
        seconds: Wall time of the sampling.
    """

    label: str
    grid: str
    setting: str
    budget: int | None
    nfe: float
    frechet: Estimate
    sliced: Estimate
    seconds: float


class Quality:
    """Both distances from the training split, in groups as large as the held-out split.

    Args:
        train_split: What samples are compared with.
        held_out: The floor, and the size of a group.
        num_projections: Directions of the sliced Wasserstein distance.
    """

    def __init__(self, train_split: ImageDataset, held_out: ImageDataset, *, num_projections: int = 200) -> None:
        self._space, self.group_size, self.num_projections = train_split.space, len(held_out), num_projections
        self._classifier, self.accuracy = train_feature_classifier(train_split, held_out)
        self._pixels = self._space.encode(train_split.images)
        self._features = self._classifier.features(self._pixels)
        self.floor = self(self._space.encode(held_out.images))

    def __call__(self, x0: Tensor) -> tuple[Estimate, Estimate]:
        """Frechet and sliced Wasserstein distance of samples [N, C, H, W], rounded to the data's grey levels first."""
        pixels = self._space.encode(self._space.decode(x0))
        return (
            self._estimate(
                lambda features: frechet_distance(features, self._features), self._classifier.features(pixels)
            ),
            self._estimate(
                lambda part: sliced_wasserstein(part, self._pixels, num_projections=self.num_projections).value, pixels
            ),
        )

    def _estimate(self, statistic: Callable[[Tensor], float], samples: Tensor) -> Estimate:
        return grouped_estimate(statistic, samples, group_size=self.group_size)


def network_calls(sampler: Sampler, sde: SDE) -> int:
    """Count a sampler's network calls, on a standard Gaussian, whose score costs nothing."""
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 1), covs=torch.ones(1, 1, 1))
    noise = NoiseStreams(0, range(1))
    return sampler.sample(model, sampler.prior_sample(sde, (1,), noise), noise=noise).nfe


def largest_within(budget: int, build: Callable[[int], Sampler], sde: SDE) -> Sampler | None:
    """The sampler of the most steps whose network calls keep to a budget; None if one step breaks it.

    Args:
        budget: Network calls.
        build: From a number of steps to a sampler, which calls the network at least once a step.
        sde: The SDE it will run on.
    """
    fits, too_many = 0, budget + 1
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if network_calls(build(middle), sde) <= budget:
            fits = middle
        else:
            too_many = middle
    return build(fits) if fits else None


def settings(entry: Entry, sde: SDE) -> Iterator[tuple[str, int | None, Sampler]]:
    """The runs of an entry: each setting's name, budget and sampler; those that cannot be built are named."""
    for tolerance in entry.tolerances:
        try:
            sampler = make_sampler(entry.name, rtol=tolerance, atol=tolerance, **entry.options)
        except ValueError as error:
            _say(f"{entry.label}, tolerance {tolerance:g}: left out, {error}")
            continue
        yield f"rtol=atol={tolerance:g}", None, sampler
    for budget in () if entry.tolerances else entry.budgets:

        def build(num_steps: int) -> Sampler:
            return make_sampler(entry.name, num_steps=num_steps, grid=entry.grid, **entry.options)

        try:
            sampler = largest_within(budget, build, sde)
        except ValueError as error:
            _say(f"{entry.label}, {budget} calls: left out, {error}")
            continue
        if sampler is None:
            _say(f"{entry.label}, {budget} calls: left out, one step takes more")
            continue
        yield f"num_steps={getattr(sampler, 'num_steps', None)}", budget, sampler


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def draw(
    sampler: Sampler,
    model: ScoreModel,
    shape: tuple[int, ...],
    *,
    num_samples: int,
    batch_size: int,
    device: torch.device,
) -> tuple[Tensor, float, float]:
    """Samples [N, ...] from streams (0, k), network calls a batch, seconds: the same x_T for every sampler."""
    parts, calls, began = [], [], time.perf_counter()
    for first in range(0, num_samples, batch_size):
        noise = NoiseStreams(0, range(first, min(first + batch_size, num_samples)))
        result = sampler.sample(model, sampler.prior_sample(model.sde, shape, noise, device=device), noise=noise)
        parts.append(result.x0.cpu())
        calls.append(result.nfe)
    return torch.cat(parts), sum(calls) / len(calls), time.perf_counter() - began


def measure_entry(entry: Entry, model: ScoreModel, quality: Quality, shape: tuple[int, ...], **how: Any) -> list[Point]:
    """Every setting of an entry; what cannot run is named and left out."""
    points = []
    for setting, budget, sampler in settings(entry, model.sde):
        try:
            x0, nfe, seconds = draw(sampler, model, shape, **how)
        except (ValueError, FloatingPointError, RuntimeError) as error:
            _say(f"{entry.label}, {setting}: left out, {error}")
            continue
        frechet, sliced = quality(x0)
        points.append(
            Point(entry.label, "" if entry.tolerances else entry.grid, setting, budget, nfe, frechet, sliced, seconds)
        )
        print(
            f"{entry.label:22} {setting:16} nfe {nfe:6.1f}  frechet {frechet.value:8.3f} ± {frechet.stderr:.3f}  "
            f"sliced {sliced.value:.5f} ± {sliced.stderr:.5f}  {seconds:6.1f} s",
            flush=True,
        )
    return points


def run(arguments: argparse.Namespace, overrides: Sequence[str] = ()) -> None:
    """Train if need be, sample, measure, write."""
    config = load_config(arguments.config, overrides, defaults=get_default_config())
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir(arguments.config)
    if not any((workdir / "checkpoints").glob("step_*")):
        train(config, workdir)
    check_for_use(workdir, config)
    device = pick_device(config)
    train_split, held_out = load_images(config, "train"), load_images(config, "test")
    network, step = load_trained(config, workdir, train_split.kind, device)
    model = bound_x0(config, network, train_split.kind)
    quality = Quality(train_split, held_out)
    num_samples = math.ceil(arguments.num_samples / quality.group_size) * quality.group_size
    points: list[Point] = []
    for entry in ENTRIES:
        if arguments.only and entry.label not in arguments.only:
            continue
        if entry.name not in available_samplers():
            _say(f"{entry.label}: left out, no sampler is registered as {entry.name}")
            continue
        how = {"num_samples": num_samples, "batch_size": arguments.batch_size, "device": device}
        points += measure_entry(entry, model, quality, train_split.image_shape, **how)
    frechet, sliced = quality.floor
    report = {
        "dataset": train_split.name,
        "config": arguments.config,
        "step": step,
        "clip_x0": bool(config.sampling.clip_x0),
        "threshold_x0": config.sampling.threshold_x0,
        "num_samples": num_samples,
        "group_size": quality.group_size,
        "num_reference": len(train_split),
        "num_projections": quality.num_projections,
        "classifier_accuracy": quality.accuracy,
        "device": device.type,
        "num_threads": torch.get_num_threads(),
        "floor": {"frechet": asdict(frechet), "sliced": asdict(sliced)},
        "points": [asdict(point) for point in points],
    }
    write_report(report, Path(arguments.output))


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description="Quality of samples against network calls, for every sampler.",
        epilog="Any key of the config can be set, as in --config.device=cpu.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", default="configs/vp/digits.py", help="what the network was, or will be, trained with"
    )
    parser.add_argument("--workdir", default="", help="its work directory; default: runs/<family>/<config name>")
    parser.add_argument("--num-samples", type=int, default=360, help="rounded up to whole groups of the held-out size")
    parser.add_argument("--batch-size", type=int, default=120)
    parser.add_argument("--only", nargs="*", default=(), metavar="LABEL", help="labels of ENTRIES; default: all")
    parser.add_argument("--output", default=".", help="under which benchmarks/results/ and docs/ are written")
    run(*parser.parse_known_args(arguments))


if __name__ == "__main__":
    main()
