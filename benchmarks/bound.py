"""What the variational bound costs: schemes of drawing its terms beside the full sum, on the same images and network.

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

from data import to_model_space
from likelihood import ContinuousBound, VariationalBound, nats_to_bits_per_dim
from models import ClippedScoreModel, ScoreModel
from sde_lib import NoiseStreams
from training.build import build_dataset, pick_device
from training.config import load_config
from training.state import load_trained
from training.workdir import default_workdir, write_json

RESULT = Path(__file__).parent / "results" / "bound.json"
Estimator = VariationalBound | ContinuousBound


@dataclass(frozen=True)
class Run:
    """One pass over the images: mean and the part of its standard error that is due to the draws, in bits/dim."""

    bits_per_dim: float
    sampling_stderr: float


def measure(estimator: Estimator, model: ScoreModel, x0: Tensor, *, seed: int, batch_size: int) -> Run:
    """Measure every image once."""
    total, variance, known = 0.0, 0.0, True
    for first in range(0, len(x0), batch_size):
        batch = x0[first : first + batch_size]
        terms = estimator(model, batch, noise=NoiseStreams(seed, range(first, first + len(batch))))
        total += float(terms.bits_per_dim.sum())
        known = known and terms.sampling_variance is not None
        variance += 0.0 if terms.sampling_variance is None else float(terms.sampling_variance.sum())
    stderr = float(nats_to_bits_per_dim(torch.tensor(variance).sqrt(), x0[0].numel())) / len(x0)
    return Run(total / len(x0), stderr if known else math.nan)


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
    truth: float,
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
        truth: What the scheme estimates, in bits/dim.
        full_evaluations: Network evaluations of the full sum.
    """
    needs_pilot = build(1).step_sampling == "importance"
    pilot_evaluations = num_knots * len(pilot) if needs_pilot else 0
    num_draws = calls - 1 - math.ceil(pilot_evaluations / len(x0))
    runs = []
    for seed in tqdm(range(1, repeats + 1), desc=f"{name}, {calls} calls", unit="pass", dynamic_ncols=True):
        estimator = build(num_draws)
        if needs_pilot:
            # fitted anew each time: what the weights' own noise does is part of the spread
            estimator.fit_steps(
                model, pilot, noise=NoiseStreams(seed, range(10**6, 10**6 + len(pilot))), num_knots=num_knots
            )
        runs.append(measure(estimator, model, x0, seed=seed, batch_size=batch_size))
    means = torch.tensor([run.bits_per_dim for run in runs], dtype=torch.float64)
    spread = float(means.std())
    return {
        "scheme": name,
        "calls_per_image": calls,
        "steps_per_image": num_draws,
        "pilot_evaluations": pilot_evaluations,
        "share_of_full": (len(x0) * (num_draws + 1) + pilot_evaluations) / full_evaluations,
        "bits_per_dim": float(means.mean()),
        "error": float(means.mean()) - truth,
        "error_stderr": spread / math.sqrt(repeats),
        "stderr": spread,
        "stderr_reported": math.sqrt(sum(run.sampling_stderr**2 for run in runs) / repeats),
        "root_mean_square_error": float((means - truth).square().mean().sqrt()),
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="The bound from few terms beside the full sum.", allow_abbrev=False)
    parser.add_argument("--config", default="configs/vp/digits.py")
    parser.add_argument("--workdir", default="", help="its trained work directory; default: runs/<family>/<name>")
    parser.add_argument("--num-images", type=int, default=0, help="of the test split; 0: all")
    parser.add_argument("--calls", default="5,10", help="network evaluations an image")
    parser.add_argument("--repeats", type=int, default=20, help="seeds a scheme")
    parser.add_argument("--pilot-images", type=int, default=8, help="of the training split")
    parser.add_argument("--pilot-knots", type=int, default=15, help="steps that each of them is evaluated at")
    parser.add_argument("--batch-size", type=int, default=120)
    parser.add_argument("--continuous-steps", type=int, default=100, help="of the continuous bound's own reference")
    parser.add_argument("--output", default=str(RESULT))
    arguments = parser.parse_args()
    config = load_config(arguments.config, [])
    dataset, device = build_dataset(config, "test"), pick_device(config)
    workdir = Path(arguments.workdir) if arguments.workdir else default_workdir(arguments.config)
    model, step = load_trained(config, workdir, dataset, device)
    model = ClippedScoreModel(model) if config.eval.clip_x0 else model
    num_levels, variance = dataset.num_levels, config.eval.vlb_variance
    x0 = to_model_space(dataset.images[: arguments.num_images or None], num_levels).to(device)
    # spread over the split, which may be sorted
    train = build_dataset(config, "train").images
    chosen = torch.linspace(0, len(train) - 1, arguments.pilot_images).long()
    pilot = to_model_space(train[chosen], num_levels).to(device)
    full = VariationalBound(num_levels=num_levels, variance=variance)
    num_times = len(full.noisy_times(model.sde))

    began = time.perf_counter()
    print(f"the full sum: {len(x0)} images at {num_times} times", flush=True)
    truth = measure(full, model, x0, seed=0, batch_size=arguments.batch_size)
    full_seconds = time.perf_counter() - began
    limit = ContinuousBound(num_levels=num_levels, steps_per_image=arguments.continuous_steps)
    continuous = measure(limit, model, x0, seed=0, batch_size=arguments.batch_size)

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
            truth=reference.bits_per_dim,
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
        "full": vars(truth) | {"seconds": full_seconds},
        "continuous": vars(continuous) | {"steps_per_image": arguments.continuous_steps},
        "schemes": rows,
    }
    print(_table(report))
    write_json(Path(arguments.output), report)


def _table(report: dict[str, Any]) -> str:
    """What a reader wants to see, in bits/dim."""
    full, limit = report["full"], report["continuous"]
    lines = [
        f"full sum over {report['num_times']} times, {report['num_images']} images: "
        f"{full['bits_per_dim']:.4f}, of which the noise draws leave uncertain {full['sampling_stderr']:.4f}",
        f"continuous time, {limit['steps_per_image']} draws an image: "
        f"{limit['bits_per_dim']:.4f}, uncertain {limit['sampling_stderr']:.4f}",
        f"{'scheme':28}{'calls':>6}{'share':>9}{'error':>10}{'+-':>9}{'s.e.':>9}{'reported':>10}",
    ]
    for row in report["schemes"]:
        lines.append(
            f"{row['scheme']:28}{row['calls_per_image']:6d}{row['share_of_full']:9.2%}{row['error']:10.4f}"
            f"{row['error_stderr']:9.4f}{row['stderr']:9.4f}{row['stderr_reported']:10.4f}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
