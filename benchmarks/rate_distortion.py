"""Distortion and rate over the noise of the latents: ``python -m benchmarks.rate_distortion``.

Of a model of latents and its autoencoder: a receiver that has z_t, the latent with the noise of a time t, decodes the
model's E[z | z_t]. Both parts of the bound are measured at each log-SNR of z_t:

    distortion = -log p(x | E[z | z_t]),   rate = L_T + 1/2 integral over log-SNR up to that of t,

whose sum bounds -log p(x) at every t, as Ho et al. 2020, Section 4.3, read a diffusion of pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.options import listed, output, run_benchmark, whole
from benchmarks.timing import table
from benchmarks.trained import load_images
from experiment import load_run
from experiment.latents.encoding import latent_model
from experiment.pictures import save_figure
from experiment.workdir import write_json
from likelihood import ContinuousBound, mean_and_stderr, nats_to_bits_per_dim, pixel_nats
from models import GaussianLatent, LatentDiffusion
from sde_lib import NoiseStreams

RESULT = Path(__file__).parent / "results" / "rate_distortion.json"
_NUMBERS = ("distortion", "rate", "bits_per_dim")


@torch.no_grad()
def measure(
    model: LatentDiffusion, x0: Tensor, log_snr: float, *, num_levels: int | None, steps_per_image: int
) -> dict[str, float]:
    """The two parts at one log-SNR, and the root mean square error of the decoded images, in units of x0."""
    noise = NoiseStreams(0, range(len(x0)))
    latent = model.first_stage.encode(x0)
    assert isinstance(latent, GaussianLatent)
    z = latent.draw(noise.normal_like(latent.mean))
    z = model.standardize(latent.mean if model.is_own_state else z)
    time = model.sde.time_from_log_snr(torch.tensor([log_snr], dtype=torch.float64))
    terms = ContinuousBound(num_levels=None, steps_per_image=steps_per_image, t_end=float(time))(
        model.prior, z, noise=noise
    )
    t = time.expand(len(x0))
    decoded = model.restore(model.prior(model.sde.perturb(z, t, noise.normal_like(z)), t).x0)
    pixels = model.first_stage.decode(decoded)
    distortion, rate = pixel_nats(pixels, x0, num_levels), terms.prior + terms.diffusion
    found = {"log_snr": log_snr, "rmse": float((pixels.mean - x0).square().mean().sqrt())}
    for name, nats in zip(_NUMBERS, (distortion, rate, distortion + rate), strict=True):
        found[name], found[f"{name}_stderr"] = mean_and_stderr(nats_to_bits_per_dim(nats, x0[0].numel()))
    return found


def rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """The lines of the table, a row a log-SNR."""
    return [
        {"log-SNR of z_t": f"{one['log_snr']:g}"}
        | {name.replace("_per_", "/"): f"{one[name]:.3f} ± {one[f'{name}_stderr']:.3f}" for name in _NUMBERS}
        | {"RMSE": f"{one['rmse']:.3f}"}
        for one in report["rows"]
    ]


def picture(report: dict[str, Any]) -> Figure:
    """Distortion over rate, with two standard errors, and the line of their least sum."""
    figure = Figure(figsize=(5, 4), layout="constrained")
    axes, points = figure.add_subplot(), report["rows"]
    rate, distortion = ([one[name] for one in points] for name in ("rate", "distortion"))
    xerr, yerr = ([2 * one[f"{name}_stderr"] for one in points] for name in ("rate", "distortion"))
    axes.errorbar(rate, distortion, xerr=xerr, yerr=yerr, marker="o", capsize=2)
    for one in points:
        axes.annotate(f"{one['log_snr']:g}", (one["rate"], one["distortion"]), (5, 5), textcoords="offset points")
    best, ends = min(one["bits_per_dim"] for one in points), (0.0, 1.05 * max(rate))
    axes.plot(ends, [best - end for end in ends], "--", color="grey", label=f"sum {best:.3f}, the least")
    axes.set(xlabel="rate, bits/dim", ylabel="distortion, bits/dim", title="By log-SNR of the latents")
    axes.legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description="Distortion and rate over the noise of latents.", allow_abbrev=False)
    parser.add_argument("--workdir", type=Path, default=Path("runs/latent/digits_joint"), help="of a model of latents")
    parser.add_argument("--log-snrs", type=listed(float), default=[-3, -2, -1, 0, 1, 2, 3, 3.9], help="of z_t")
    parser.add_argument("--num-images", type=whole(2), default=360, help="the first of the test split")
    parser.add_argument("--steps-per-image", type=whole(1), default=40, help="draws of log-SNR for the integral")
    parser.add_argument("--output", type=output, default=RESULT)
    parser.add_argument("--picture", type=output, help="a PNG; default: none")
    args = parser.parse_args(arguments)
    run = load_run(args.workdir)
    latents = getattr(run.kind, "latents", None)
    if latents is None or latents.num_levels is not None or run.conditions.any:
        raise SystemExit(f"--workdir={args.workdir} must hold a model of Gaussian latents that is told nothing")
    dataset = load_images(run.config, "test").subset(args.num_images)
    model = latent_model(run.model, latents)
    x0 = dataset.space.encode(dataset.images)
    report: dict[str, Any] = {"dataset": dataset.name, "step": run.step, "num_images": len(x0), "rows": []}
    for log_snr in args.log_snrs:
        found = measure(model, x0, log_snr, num_levels=dataset.num_levels, steps_per_image=args.steps_per_image)
        report["rows"].append(found)
    write_json(args.output, report)
    print(table(rows(report)))
    if args.picture:
        save_figure(args.picture, picture(report))


if __name__ == "__main__":
    run_benchmark(main)
