"""Quality of samples against network calls, every sampler on one network: ``python -m benchmarks.quality``.

The network is that of ``configs/vp/digits.py``, trained before by ``--mode train``. Writes
``benchmarks/results/quality.json``, ``docs/images/quality.png`` and the tables between two markers in
``docs/samplers.md``.
"""

from __future__ import annotations

import argparse
import math
import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import whole
from benchmarks.quality_report import tables, write_report
from benchmarks.trained import add_run, load_images, load_named_run
from data import ImageDataset
from evaluation.quality import (
    Estimate,
    frechet_distance,
    grouped_estimate,
    sliced_wasserstein,
    train_feature_classifier,
)
from experiment.build import bound_x0
from models import GaussianMixtureScoreModel, ScoreModel
from samplers import Sampler, make_sampler
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

        def frechet(features: Tensor) -> float:
            return frechet_distance(features, self._features)

        def sliced(part: Tensor) -> float:
            return sliced_wasserstein(part, self._pixels, num_projections=self.num_projections).value

        estimate = partial(grouped_estimate, group_size=self.group_size)
        return estimate(frechet, self._classifier.features(pixels)), estimate(sliced, pixels)


def network_calls(sampler: Sampler, sde: SDE) -> int:
    """Count a sampler's network calls, on a standard Gaussian, whose score costs nothing."""
    model = GaussianMixtureScoreModel(sde, means=torch.zeros(1, 1), covs=torch.ones(1, 1, 1))
    noise = NoiseStreams(0, range(1))
    return sampler.sample(model, sampler.prior_sample(sde, (1,), noise), noise=noise).nfe


def steps_within(budget: int, build: Callable[[int], Sampler], sde: SDE) -> int:
    """The most steps whose network calls keep to a budget; 0 if one step breaks it.

    Args:
        budget: Network calls.
        build: From a number of steps to a sampler, which calls the network at least once a step.
        sde: The SDE it will run on.
    """
    return bisect_right(range(1, budget + 1), budget, key=lambda num_steps: network_calls(build(num_steps), sde))


def settings(entry: Entry, sde: SDE) -> Iterator[tuple[dict[str, Any], Sampler]]:
    """The runs of an entry: what the report says of each, and its sampler."""
    for tolerance in entry.tolerances:
        said = {"label": entry.label, "grid": "", "setting": f"rtol=atol={tolerance:g}", "budget": None}
        yield said, make_sampler(entry.name, rtol=tolerance, atol=tolerance, **entry.options)
    for budget in () if entry.tolerances else entry.budgets:

        def build(num_steps: int) -> Sampler:
            return make_sampler(entry.name, num_steps=num_steps, grid=entry.grid, **entry.options)

        num_steps = steps_within(budget, build, sde)
        said = {"label": entry.label, "grid": entry.grid, "setting": f"num_steps={num_steps}", "budget": budget}
        yield said, build(num_steps)


def draw(
    sampler: Sampler, model: ScoreModel, shape: tuple[int, ...], *, num_samples: int, batch_size: int
) -> tuple[Tensor, float]:
    """Samples [N, ...] from streams (0, k), and network calls a batch: the same x_T for every sampler."""
    parts, calls = [], []
    device = next(model.parameters()).device
    for first in range(0, num_samples, batch_size):
        noise = NoiseStreams(0, range(first, min(first + batch_size, num_samples)))
        result = sampler.sample(model, sampler.prior_sample(model.sde, shape, noise, device=device), noise=noise)
        parts.append(result.x0.cpu())
        calls.append(result.nfe)
    return torch.cat(parts), sum(calls) / len(calls)


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, measure, write."""
    parser = argparse.ArgumentParser(description="Quality of samples against network calls.", allow_abbrev=False)
    add_run(parser)
    parser.add_argument("--num-samples", type=whole(1), default=360, help="rounded up to groups of the held-out size")
    parser.add_argument("--batch-size", type=whole(1), default=120)
    parser.add_argument(
        "--output", type=Path, default=".", help="under which benchmarks/results/ and docs/ are written"
    )
    args = parser.parse_args(arguments)
    run = load_named_run(args)
    model = bound_x0(run.config, run.model, run.kind)
    train_split, held_out = load_images(run.config, "train"), load_images(run.config, "test")
    quality = Quality(train_split, held_out)
    num_samples = math.ceil(args.num_samples / quality.group_size) * quality.group_size
    points: list[dict[str, Any]] = []
    for entry in tqdm(ENTRIES, unit="sampler", dynamic_ncols=True):
        for said, sampler in settings(entry, model.sde):
            began = time.perf_counter()
            x0, nfe = draw(sampler, model, run.sample_shape, num_samples=num_samples, batch_size=args.batch_size)
            taken = time.perf_counter() - began
            frechet, sliced = map(asdict, quality(x0))
            points.append(said | {"nfe": nfe, "frechet": frechet, "sliced": sliced, "seconds": taken})
    frechet, sliced = map(asdict, quality.floor)
    report = {
        "dataset": train_split.name,
        "config": args.config,
        "step": run.step,
        "clip_x0": bool(run.config.sampling.clip_x0),
        "threshold_x0": run.config.sampling.threshold_x0,
        "num_samples": num_samples,
        "group_size": quality.group_size,
        "num_reference": len(train_split),
        "num_projections": quality.num_projections,
        "classifier_accuracy": quality.accuracy,
        "device": next(model.parameters()).device.type,
        "num_threads": torch.get_num_threads(),
        "floor": {"frechet": frechet, "sliced": sliced},
        "points": points,
    }
    print(tables(report))
    write_report(report, args.output)


if __name__ == "__main__":
    main()
