"""What a sampler's step costs beside the scheduler of diffusers, with a network that returns at once.

Run ``python -m benchmarks.overhead``. Both sides are timed in turn within one run, a loop of steps each, so that what
else the machine does falls on both; the figure to read is the ratio. Needs ``pip install -e '.[test]'``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from models import EpsParameterization, NetworkScoreModel, ScoreModel
from models.backbones import UNet
from samplers import Sampler, make_sampler
from sde_lib import NoiseStreams, Tabulated

SHAPE = (64, 3, 32, 32)
RESULT = Path(__file__).parent / "results" / "overhead.json"

# label, our sampler and its options, diffusers' scheduler and its options, grid
PAIRS: list[tuple[str, str, dict[str, Any], str, dict[str, Any], str]] = [
    ("DDPM", "ancestral", {}, "DDPMScheduler", {"clip_sample": False}, "leading"),
    ("DDIM", "ddim", {}, "DDIMScheduler", {"clip_sample": False}, "leading"),
    ("Euler", "ddim", {}, "EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
    ("Heun", "heun", {}, "HeunDiscreteScheduler", {"timestep_spacing": "trailing"}, "trailing"),
    ("DPM-Solver++ 2M", "dpm_solver_pp", {}, "DPMSolverMultistepScheduler", {}, "trailing"),
    (
        "DPM-Solver++ 3M",
        "dpm_solver_pp",
        {"variant": "3M"},
        "DPMSolverMultistepScheduler",
        {"solver_order": 3},
        "trailing",
    ),
    (
        "SDE-DPM-Solver++ 2M",
        "dpm_solver_pp",
        {"stochastic": True},
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++"},
        "trailing",
    ),
    ("UniPC 2", "unipc", {"order": 2}, "UniPCMultistepScheduler", {}, "trailing"),
    ("UniPC 3", "unipc", {"order": 3}, "UniPCMultistepScheduler", {"solver_order": 3}, "trailing"),
]


class Instant(nn.Module):
    """A network that returns at once."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The same numbers always."""
        return self.out


def theirs(scheduler: Any, network: nn.Module, x_T: Tensor, num_steps: int) -> Callable[[], None]:
    """A loop as diffusers' documentation writes it."""

    def loop() -> None:
        x = x_T * scheduler.init_noise_sigma
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x).prev_sample

    return loop


def ours(sampler: Sampler, model: ScoreModel, x_T: Tensor, noise: NoiseStreams) -> Callable[[], None]:
    """A call of ``sample``."""
    return lambda: (sampler.sample(model, x_T, noise=noise), None)[1]


def side_by_side(
    first: Callable[[], None], second: Callable[[], None], repeats: int
) -> tuple[list[float], list[float]]:
    """Seconds of both, in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for function in (first, second):
        function()
    for _ in range(repeats):
        for taken, function in zip(times, (first, second), strict=True):
            begin = time.perf_counter()
            function()
            taken.append(time.perf_counter() - begin)
    return times


def measure_steps(num_steps: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds a step of every pair, and the median over repeats of the ratio ours / theirs."""
    network = Instant()
    model = NetworkScoreModel(network, Tabulated.ddpm(), EpsParameterization())
    noise = NoiseStreams(0, range(SHAPE[0]))
    x_T = noise.normal(SHAPE[1:])
    rows = []
    for label, name, options, scheduler_name, scheduler_options, grid in PAIRS:
        sampler = make_sampler(name, num_steps=num_steps, grid=grid, **options)
        scheduler = getattr(diffusers, scheduler_name)(**{"timestep_spacing": grid, **scheduler_options})
        with torch.no_grad():
            mine, other = side_by_side(
                ours(sampler, model, x_T, noise), theirs(scheduler, network, x_T, num_steps), repeats
            )
        rows.append(
            {
                "sampler": label,
                "ours_us": 1e6 * statistics.median(mine) / num_steps,
                "diffusers_us": 1e6 * statistics.median(other) / num_steps,
                "ratio": statistics.median(a / b for a, b in zip(mine, other, strict=True)),
            }
        )
        print("{sampler:22s} {ours_us:8.0f} {diffusers_us:8.0f} {ratio:6.2f}".format(**rows[-1]), flush=True)
    return rows


def measure_share(batch_size: int, num_steps: int) -> list[dict[str, Any]]:
    """The sampler's own share of the time on the CIFAR-10 U-Net, in percent: all but what the backbone takes."""
    backbone = UNet(image_size=32).eval()
    spent = [0.0]
    forward = backbone.forward

    def timed(*args: Any, **kwargs: Any) -> Tensor:
        begin = time.perf_counter()
        out = forward(*args, **kwargs)
        spent[0] += time.perf_counter() - begin
        return out

    backbone.forward = timed
    model = NetworkScoreModel(backbone, Tabulated.ddpm(), EpsParameterization())
    noise = NoiseStreams(0, range(batch_size))
    x_T = noise.normal(SHAPE[1:])
    rows = []
    for label, name, options, *_, grid in PAIRS:
        sampler = make_sampler(name, num_steps=num_steps, grid=grid, **options)
        with torch.no_grad():
            model(x_T, torch.ones(batch_size, dtype=torch.float64))
            spent[0], begin = 0.0, time.perf_counter()
            sampler.sample(model, x_T, noise=noise)
        whole = time.perf_counter() - begin
        rows.append({"sampler": label, "share_percent": 100 * (1 - spent[0] / whole), "seconds": whole})
        print("{sampler:22s} {share_percent:6.2f} % of {seconds:.2f} s".format(**rows[-1]), flush=True)
    return rows


def main() -> None:
    """Measure, print and write ``results/overhead.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--unet-batch", type=int, default=16, help="0 leaves the U-Net out")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"microseconds a step on {SHAPE}, {args.threads} threads: ours, diffusers, ratio", flush=True)
    report: dict[str, Any] = {
        "shape": SHAPE,
        "threads": args.threads,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "steps": measure_steps(args.steps, args.repeats),
    }
    if args.unet_batch:
        print(f"share of a sampler on the CIFAR-10 U-Net, batch {args.unet_batch}", flush=True)
        report["unet_batch"] = args.unet_batch
        report["unet"] = measure_share(args.unet_batch, 3)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
