"""The cost of the variational bound: schemes of drawing its terms beside the full sum, on the same images and network.

Run ``python -m benchmarks.bound``. Each scheme measures the same images again and again with other seeds. The standard
deviation of the mean over the images is then the standard error "beyond the images' own spread": that of the draws of
steps and noise alone. All schemes get the same number of network evaluations an image, L_0's and the pilot's included.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from benchmarks.options import listed, output, whole
from benchmarks.timing import table
from benchmarks.trained import add_run, load_images, load_named_run
from experiment.workdir import write_json
from likelihood import ContinuousBound, VariationalBound, nats_to_bits_per_dim
from models import ClippedScoreModel, ScoreModel, pick_variance
from sde_lib import NoiseStreams

RESULT = Path(__file__).parent / "results" / "bound.json"
BATCH_SIZE = 120
# images of the training split for the weights of importance sampling, and steps that each is evaluated at
PILOT_IMAGES, PILOT_KNOTS = 16, 20
# draws an image of the continuous bound's own reference
CONTINUOUS_STEPS = 100
Estimator = VariationalBound | ContinuousBound
# bits/dim of images, and the standard error of their mean
Reference = tuple[Tensor, float]


def measure(estimator: Estimator, model: ScoreModel, x0: Tensor, *, seed: int) -> tuple[Tensor, Tensor]:
    """Bits/dim of every image, and the variance that its draws are said to have, [N]; image k has stream (seed, k)."""
    values, variances = [], []
    for first in range(0, len(x0), BATCH_SIZE):
        batch = x0[first : first + BATCH_SIZE]
        terms = estimator(model, batch, noise=NoiseStreams(seed, range(first, first + len(batch))))
        values.append(terms.bits_per_dim.cpu())
        if terms.sampling_variance is not None:
            unit = float(nats_to_bits_per_dim(torch.ones(()), terms.num_dims))
            variances.append(unit**2 * terms.sampling_variance.cpu())
    return torch.cat(values), torch.cat(variances) if variances else torch.zeros(len(x0), dtype=torch.float64)


def measure_scheme(
    build: Callable[..., Estimator],
    model: ScoreModel,
    x0: Tensor,
    pilot: Tensor,
    reference: Reference,
    *,
    calls: int,
    repeats: int,
) -> dict[str, Any]:
    """The error, standard error and cost of a scheme at so many network evaluations an image.

    Args:
        build: Makes the estimator, of ``steps_per_image``.
        model: The model.
        x0: The images.
        pilot: Other images, for the weights of importance sampling.
        reference: What the scheme estimates, for the first of the images.
        calls: Network evaluations an image, L_0's and the pilot's included.
        repeats: Number of seeds.
    """
    needs_pilot = build(steps_per_image=1).step_sampling == "importance"
    pilot_evaluations = PILOT_KNOTS * len(pilot) if needs_pilot else 0
    num_draws = calls - 1 - math.ceil(pilot_evaluations / len(x0))
    runs = []
    for seed in range(1, repeats + 1):
        estimator = build(steps_per_image=num_draws)
        if needs_pilot:
            # fitted anew each time: what the weights' own noise does is part of the spread
            streams = NoiseStreams(seed, range(10**6, 10**6 + len(pilot)))
            estimator.fit_steps(model, pilot, noise=streams, num_knots=PILOT_KNOTS)
        runs.append(measure(estimator, model, x0, seed=seed))
    bits, variances = (torch.stack(parts) for parts in zip(*runs, strict=True))
    exact, noise = reference
    means, compared = bits.mean(1), bits[:, : len(exact)].mean(1)
    return {
        "calls_per_image": calls,
        "steps_per_image": num_draws,
        "evaluations_per_image": num_draws + 1 + pilot_evaluations / len(x0),
        "bits_per_dim": float(means.mean()),
        # on the images that the reference has
        "error": float(compared.mean() - exact.mean()),
        "error_stderr": math.hypot(float(compared.std()) / math.sqrt(repeats), noise),
        # over seeds: of the mean over all images, then of each image on its own, as if none shared its steps
        "stderr": float(means.std()),
        "stderr_from_images": float((bits.var(0).mean() / len(x0)).sqrt()),
        # what one run says of itself; without L_0's noise
        "stderr_reported": float((variances.mean() / len(x0)).sqrt()),
    }


def noise_of_full_sum(full: VariationalBound, model: ScoreModel, x0: Tensor) -> float:
    """Standard error of the full sum's mean, by its noise alone: that of L_0 and the 17 terms nearest to the data.

    Those are nearly all of it, as L_t falls like 1 / t.
    """
    times = full.noisy_times(model.sde)[:17].flip(0)
    head = VariationalBound(num_levels=full.num_levels, variance=full.variance, grid=times)
    values = torch.stack([measure(head, model, x0, seed=seed)[0] for seed in range(5)])
    return float((values.var(0).mean() / len(x0)).sqrt())


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="The bound from few terms beside the full sum.", allow_abbrev=False)
    add_run(parser)
    parser.add_argument("--num-images", type=whole(0), default=0, help="of the test split; 0: all")
    parser.add_argument("--full-images", type=whole(0), default=0, help="of those, for the full sum; 0: all")
    parser.add_argument("--calls", type=listed(int), default=[5, 10], help="network evaluations an image")
    parser.add_argument("--repeats", type=whole(2), default=20, help="seeds a scheme")
    parser.add_argument("--output", type=output, default=RESULT)
    return parser.parse_args()


def main() -> None:
    """Measure, print, write."""
    args = _parse()
    run = load_named_run(args)
    dataset, device = load_images(run.config, "test"), next(run.model.parameters()).device
    model = ClippedScoreModel(run.model) if run.config.eval.clip_x0 else run.model
    x0 = dataset.space.encode(dataset.images[: args.num_images or None]).to(device)
    # spread over the split, which may be sorted
    train = load_images(run.config, "train").images
    pilot = dataset.space.encode(train[torch.linspace(0, len(train) - 1, PILOT_IMAGES).long()]).to(device)
    variance = pick_variance(run.config.eval.vlb_variance, learned=run.model.learned_variance)
    bound = partial(VariationalBound, num_levels=dataset.num_levels, variance=variance)
    continuous = partial(ContinuousBound, num_levels=dataset.num_levels)

    compared, full = x0[: args.full_images or None], bound()
    num_times = len(full.noisy_times(model.sde))
    print(f"the full sum: {len(compared)} images at {num_times} times", flush=True)
    noise = noise_of_full_sum(full, model, compared)
    limit, variances = measure(continuous(steps_per_image=CONTINUOUS_STEPS), model, compared, seed=0)
    references: dict[str, Reference] = {
        "full": (measure(full, model, compared, seed=0)[0], noise),
        "continuous": (limit, math.hypot(float((variances.mean() / len(compared)).sqrt()), noise)),
    }
    kinds = [("full", bound, name) for name in ("uniform", "stratified", "low_discrepancy", "importance")]
    kinds += [("continuous", continuous, name) for name in ("low_discrepancy", "importance")]
    rows = []
    for calls in args.calls:
        for kind, estimator, name in tqdm(kinds, desc=f"{calls} calls", unit="scheme", dynamic_ncols=True):
            build = partial(estimator, step_sampling=name)
            found = measure_scheme(build, model, x0, pilot, references[kind], calls=calls, repeats=args.repeats)
            found["share_of_full"] = found["evaluations_per_image"] / num_times
            rows.append({"scheme": name if kind == "full" else f"continuous, {name}"} | found)
    report = {
        "config": args.config,
        "step": run.step,
        "variance": variance,
        "num_images": len(x0),
        "num_times": num_times,
        "repeats": args.repeats,
        **{
            kind: {"bits_per_dim": float(bits.mean()), "noise_stderr": stderr, "num_images": len(bits)}
            for kind, (bits, stderr) in references.items()
        },
        "schemes": rows,
    }
    print(table([{"reference": kind} | report[kind] for kind in references]), table(rows), sep="\n\n")
    write_json(args.output, report)


if __name__ == "__main__":
    main()
