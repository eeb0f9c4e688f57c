"""The cost of the variational bound: schemes of drawing its terms beside the full sum, on the same images and network.

Run ``python -m benchmarks.bound``. Each scheme measures the same images again and again with other seeds. The standard
deviation of the mean over the images is then the standard error "beyond the images' own spread": that of the draws of
steps and noise alone. All schemes get the same number of network evaluations an image, L_0's and the pilot's included.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.images import load_images
from configs.default import get_default_config
from data import LevelSpace
from experiment.build import pick_device
from experiment.config import load_config
from experiment.from_checkpoints import load_trained
from experiment.workdir import default_workdir, write_json
from likelihood import ContinuousBound, VariationalBound, nats_to_bits_per_dim
from models import ClippedScoreModel, ScoreModel, pick_variance
from sde_lib import NoiseStreams

RESULT = Path(__file__).parent / "results" / "bound.json"
Estimator = VariationalBound | ContinuousBound


@dataclass(frozen=True)
class Run:
    """One pass over the images: bits/dim of each, and the variance that the estimator says its draws have, [N]."""

    bits_per_dim: Tensor
    sampling_variance: Tensor


def measure(estimator: Estimator, model: ScoreModel, x0: Tensor, *, seed: int, batch_size: int) -> Run:
    """Measure every image once; image k draws from stream (seed, k)."""
    values, variances = [], []
    for first in range(0, len(x0), batch_size):
        batch = x0[first : first + batch_size]
        terms = estimator(model, batch, noise=NoiseStreams(seed, range(first, first + len(batch))))
        values.append(terms.bits_per_dim.cpu())
        unit = float(nats_to_bits_per_dim(torch.ones(()), terms.num_dims))
        unknown = torch.full((len(batch),), math.nan, dtype=torch.float64)
        variances.append(unknown if terms.sampling_variance is None else unit**2 * terms.sampling_variance.cpu())
    return Run(torch.cat(values), torch.cat(variances))


@dataclass(frozen=True)
class Reference:
    """The full sum for the first of the images, and the standard error of their mean from the noise."""

    bits_per_dim: Tensor
    stderr: float


def repeated(
    name: str,
    build: Callable[[int], Estimator],
    model: ScoreModel,
    x0: Tensor,
    pilot: Tensor,
    *,
    calls: int,
    num_knots: int,
    repeats: int,
    batch_size: int,
    reference: Reference,
    full_evaluations: int,
) -> dict[str, Any]:
    """A scheme at so many network evaluations an image: its error, its standard error, its cost.

    Args:
        name: Of the scheme.
        build: Makes the estimator of K steps an image.
        model: The model.
        x0: The images.
        pilot: Other images, for the weights of importance sampling.
        calls: Network evaluations an image, L_0's and the pilot's included.
        num_knots: Steps that each pilot image is evaluated at.
        repeats: Number of seeds.
        batch_size: Images at a time.
        reference: What the scheme estimates.
        full_evaluations: Network evaluations of the full sum.
    """
    needs_pilot = build(1).step_sampling == "importance"
    pilot_evaluations = num_knots * len(pilot) if needs_pilot else 0
    num_draws = calls - 1 - math.ceil(pilot_evaluations / len(x0))
    values, variances = [], []
    for seed in tqdm(range(1, repeats + 1), desc=f"{name}, {calls} calls", unit="pass", dynamic_ncols=True):
        estimator = build(num_draws)
        if needs_pilot:
            # fitted anew each time: what the weights' own noise does is part of the spread
            streams = NoiseStreams(seed, range(10**6, 10**6 + len(pilot)))
            estimator.fit_steps(model, pilot, noise=streams, num_knots=num_knots)
        run = measure(estimator, model, x0, seed=seed, batch_size=batch_size)
        values.append(run.bits_per_dim)
        variances.append(run.sampling_variance)
    found = torch.stack(values)
    means, compared = found.mean(1), found[:, : len(reference.bits_per_dim)].mean(1)
    return {
        "scheme": name,
        "calls_per_image": calls,
        "steps_per_image": num_draws,
        "pilot_evaluations": pilot_evaluations,
        "share_of_full": (len(x0) * (num_draws + 1) + pilot_evaluations) / full_evaluations,
        "bits_per_dim": float(means.mean()),
        # on the images that the reference has
        "error": float(compared.mean() - reference.bits_per_dim.mean()),
        "error_stderr": math.hypot(float(compared.std()) / math.sqrt(repeats), reference.stderr),
        # over seeds: of the mean over all images, then of each image on its own, as if none shared its steps
        "stderr": float(means.std()),
        "stderr_from_images": float((found.var(0).mean() / len(x0)).sqrt()),
        # what one run says of itself; without L_0's noise
        "stderr_reported": float((torch.stack(variances).mean() / len(x0)).sqrt()),
    }


def noise_of_full_sum(
    full: VariationalBound, model: ScoreModel, x0: Tensor, *, repeats: int, batch_size: int, num_terms: int = 17
) -> float:
    """Standard error of the full sum's mean, by its noise alone: that of L_0 and the terms nearest to the data.

    Those are nearly all of it, as L_t falls like 1 / t.
    """
    times = full.noisy_times(model.sde)[:num_terms].flip(0)
    head = VariationalBound(num_levels=full.num_levels, variance=full.variance, grid=times)
    runs = [measure(head, model, x0, seed=seed, batch_size=batch_size) for seed in range(repeats)]
    return float((torch.stack([run.bits_per_dim for run in runs]).var(0).mean() / len(x0)).sqrt())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The bound from few terms beside the full sum.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/vp/digits.py")
    parser.add_argument("--workdir", default="", help="its trained work directory; default: runs/<family>/<name>")
    parser.add_argument("--num-images", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--full-images", type=int, default=0, help="of those, for the full sum; 0: all")
    parser.add_argument("--calls", default="5,10", help="network evaluations an image")
    parser.add_argument("--repeats", type=int, default=20, help="seeds a scheme")
    parser.add_argument("--pilot-images", type=int, default=16, help="of the training split")
    parser.add_argument("--pilot-knots", type=int, default=20, help="steps that each of them is evaluated at")
    parser.add_argument("--batch-size", type=int, default=120)
    parser.add_argument("--continuous-steps", type=int, default=100, help="of the continuous bound's own reference")
    parser.add_argument("--output", default=str(RESULT))
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    arguments = _arguments()
    config = load_config(arguments.config, defaults=get_default_config())
    dataset, device = load_images(config, "test"), pick_device(config)
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir(arguments.config)
    model, step = load_trained(config, workdir, dataset.kind, device)
    model = ClippedScoreModel(model) if config.eval.clip_x0 else model
    num_levels = dataset.num_levels
    variance = pick_variance(config.eval.vlb_variance, learned=config.model.learned_variance)
    x0 = LevelSpace(num_levels).encode(dataset.images[: arguments.num_images or None]).to(device)
    # spread over the split, which may be sorted
    train = load_images(config, "train").images
    chosen = torch.linspace(0, len(train) - 1, arguments.pilot_images).long()
    pilot = LevelSpace(num_levels).encode(train[chosen]).to(device)
    full = VariationalBound(num_levels=num_levels, variance=variance)
    num_times = len(full.noisy_times(model.sde))

    compared = x0[: arguments.full_images or None]
    settings = {"batch_size": arguments.batch_size}
    began = time.perf_counter()
    print(f"the full sum: {len(compared)} images at {num_times} times", flush=True)
    full_run = measure(full, model, compared, seed=0, **settings)
    full_seconds = time.perf_counter() - began
    noise = noise_of_full_sum(full, model, compared, repeats=5, **settings)
    truth = Reference(full_run.bits_per_dim, noise)
    limit = ContinuousBound(num_levels=num_levels, steps_per_image=arguments.continuous_steps)
    limit_run = measure(limit, model, compared, seed=0, **settings)
    limit_noise = float((limit_run.sampling_variance.mean() / len(compared)).sqrt())
    continuous = Reference(limit_run.bits_per_dim, math.hypot(limit_noise, noise))

    def build_bound(scheme: Any) -> Callable[[int], Estimator]:
        return lambda draws: VariationalBound(
            num_levels=num_levels, variance=variance, steps_per_image=draws, step_sampling=scheme
        )

    def build_continuous(scheme: Any) -> Callable[[int], Estimator]:
        return lambda draws: ContinuousBound(num_levels=num_levels, steps_per_image=draws, step_sampling=scheme)

    schemes = ("uniform", "stratified", "low_discrepancy", "importance")
    builders = {name: (build_bound(name), truth) for name in schemes}
    builders |= {
        f"continuous, {name}": (build_continuous(name), continuous) for name in ("low_discrepancy", "importance")
    }
    rows = [
        repeated(
            name,
            build,
            model,
            x0,
            pilot,
            calls=int(calls),
            num_knots=arguments.pilot_knots,
            repeats=arguments.repeats,
            batch_size=arguments.batch_size,
            reference=reference,
            full_evaluations=len(x0) * num_times,
        )
        for calls in arguments.calls.split(",")
        for name, (build, reference) in builders.items()
    ]
    report = {
        "config": arguments.config,
        "step": step,
        "variance": variance,
        "num_images": len(x0),
        "num_times": num_times,
        "repeats": arguments.repeats,
        "full": _summary(truth) | {"seconds": full_seconds},
        "continuous": _summary(continuous) | {"steps_per_image": arguments.continuous_steps},
        "schemes": rows,
    }
    print(_table(report))
    write_json(Path(arguments.output), report)


def _summary(reference: Reference) -> dict[str, Any]:
    values = reference.bits_per_dim
    return {"bits_per_dim": float(values.mean()), "noise_stderr": reference.stderr, "num_images": len(values)}


def _table(report: dict[str, Any]) -> str:
    """The table of the page, in bits/dim."""
    full, limit = report["full"], report["continuous"]
    lines = [
        f"full sum over {report['num_times']} times, {full['num_images']} images: "
        f"{full['bits_per_dim']:.4f}, its own noise {full['noise_stderr']:.4f}",
        f"continuous time, {limit['steps_per_image']} draws an image: "
        f"{limit['bits_per_dim']:.4f}, its own noise {limit['noise_stderr']:.4f}",
        f"schemes on {report['num_images']} images, {report['repeats']} seeds each",
        f"{'scheme':28}{'calls':>6}{'share':>9}{'error':>10}{'+-':>9}{'s.e.':>9}{'by image':>10}{'reported':>10}",
    ]
    for row in report["schemes"]:
        lines.append(
            f"{row['scheme']:28}{row['calls_per_image']:6d}{row['share_of_full']:9.2%}{row['error']:10.4f}"
            f"{row['error_stderr']:9.4f}{row['stderr']:9.4f}{row['stderr_from_images']:10.4f}{row['stderr_reported']:10.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
