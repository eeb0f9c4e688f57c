"""The cost of a sampler's step beside the scheduler of diffusers, with a network that returns at once.

Run ``python -m benchmarks.overhead``. Both sides are timed in turn within one run, a loop of steps each, so that what
else the machine does falls on both; the figure to read is the ratio. With one thread the time is that of the processor,
which other processes do not take; with more it is that of the clock. Needs ``pip install -e '.[test]'``.
"""

from __future__ import annotations

import argparse
import ctypes
import inspect
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from benchmarks.options import output, whole
from benchmarks.timing import Work, in_turn, seconds, table
from experiment.workdir import write_json
from models import EpsParameterization, NetworkScoreModel, Parameterization
from models.backbones import UNet
from samplers import make_sampler
from sde_lib import SDE, NoiseStreams, Tabulated

SHAPE = (64, 3, 32, 32)
RESULT = Path(__file__).parent / "results" / "overhead.json"


class ScaledEpsParameterization(EpsParameterization):
    """The network of a VP-SDE under the VE-SDE of the same noise levels: its input is scaled back to unit variance."""

    def c_in(self, sde: SDE, t: Tensor) -> Tensor:
        """1 / sqrt(1 + sigma^2)."""
        return (1 + sde.sigma(t).square()).rsqrt()


class Instant(nn.Module):
    """A network that returns at once."""

    def __init__(self) -> None:
        super().__init__()
        self.out = torch.randn(SHAPE, generator=torch.Generator().manual_seed(0))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """The same numbers always."""
        return self.out


def theirs(scheduler: Any, network: Callable[..., Tensor], x_T: Tensor, num_steps: int) -> Work:
    """A loop as diffusers' documentation writes it."""

    def loop() -> Tensor:
        x = x_T * scheduler.init_noise_sigma
        scheduler.set_timesteps(num_steps)
        for t in scheduler.timesteps:
            out = network(scheduler.scale_model_input(x, t), t)
            x = scheduler.step(out, t, x).prev_sample
        return x

    return loop


def theirs_in_two(scheduler: Any, network: Callable[..., Tensor], x_T: Tensor, num_steps: int) -> Work:
    """Predictor and corrector, each with a network call of its own; no correction before the first prediction."""

    def loop() -> None:
        x = x_T * scheduler.init_noise_sigma
        scheduler.set_timesteps(num_steps)
        scheduler.set_sigmas(num_steps)
        for i, t in enumerate(scheduler.timesteps):
            if i > 0:
                x = scheduler.step_correct(network(x, t), x).prev_sample
            x = scheduler.step_pred(network(x, t), t, x).prev_sample

    return loop


@dataclass(frozen=True)
class Pair:
    """A sampler of ours and the scheduler that does the same.

    Attributes:
        label: What the table calls it.
        sampler: Ours.
        scheduler: Theirs.
        options: Options of ours.
        scheduler_options: Options of theirs.
        grid: The time grid of ours, and the timestep spacing of theirs unless its options say otherwise.
        sde: What ours runs on, for so many steps.
        parameterization: What the network's output is taken for.
        loop: Their loop of so many steps.
    """

    label: str
    sampler: str
    scheduler: str
    options: dict[str, Any] = field(default_factory=dict)
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    grid: str = "trailing"
    sde: Callable[[int], SDE] = lambda _: Tabulated.ddpm()
    parameterization: type[Parameterization] = EpsParameterization
    loop: Callable[[Any, Callable[..., Tensor], Tensor, int], Work] = theirs


PAIRS = [
    Pair("DDPM", "ancestral", "DDPMScheduler", {}, {"clip_sample": False}, grid="leading"),
    Pair("DDIM", "ddim", "DDIMScheduler", {}, {"clip_sample": False}, grid="leading"),
    Pair("Euler", "ddim", "EulerDiscreteScheduler"),
    Pair(
        "ancestral Euler, VE",
        "ancestral",
        "EulerAncestralDiscreteScheduler",
        # DDPM's table in the scale of the data
        sde=lambda _: Tabulated(Tabulated.ddpm().log_snr_table, family="ve"),
        parameterization=ScaledEpsParameterization,
    ),
    Pair(
        "VE predictor-corrector",
        "predictor_corrector",
        "ScoreSdeVeScheduler",
        {"predictor": "reverse_diffusion", "corrector": "langevin", "snr": 0.16},
        {"snr": 0.16, "sigma_min": 0.01, "sigma_max": 50.0},
        grid="uniform",
        sde=lambda num_steps: Tabulated.ncsn(num_steps=num_steps, sigma_min=0.01, sigma_max=50.0),
        loop=theirs_in_two,
    ),
    Pair("Heun", "heun", "HeunDiscreteScheduler"),
    Pair("DPM-Solver++ 2M", "dpm_solver_pp", "DPMSolverMultistepScheduler"),
    Pair("DPM-Solver++ 3M", "dpm_solver_pp", "DPMSolverMultistepScheduler", {"variant": "3M"}, {"solver_order": 3}),
    Pair(
        "DPM-Solver++ 2S",
        "dpm_solver_pp",
        "DPMSolverSinglestepScheduler",
        {"variant": "2S"},
        {"lower_order_final": True},
        # theirs counts network calls, and spaces them itself
        loop=lambda scheduler, network, x_T, num_steps: theirs(scheduler, network, x_T, 2 * num_steps - 1),
    ),
    Pair(
        "SDE-DPM-Solver++ 2M",
        "dpm_solver_pp",
        "DPMSolverMultistepScheduler",
        {"stochastic": True},
        {"algorithm_type": "sde-dpmsolver++"},
    ),
    Pair("UniPC 2", "unipc", "UniPCMultistepScheduler", {"order": 2}),
    Pair("UniPC 3", "unipc", "UniPCMultistepScheduler", {"order": 3}, {"solver_order": 3}),
]


def ours(pair: Pair, network: nn.Module, unit: Tensor, num_steps: int) -> Work:
    """A call of ``sample``, from the noise of every sample's own stream."""
    model = NetworkScoreModel(network, pair.sde(num_steps), pair.parameterization())
    sampler = make_sampler(pair.sampler, num_steps=num_steps, grid=pair.grid, **pair.options)
    x_T, noise = model.sde.prior_std * unit, NoiseStreams(0, range(len(unit)))
    return lambda: sampler.sample(model, x_T, noise=noise)


def keep_freed_memory() -> None:
    """Let glibc hand freed memory to the next tensor, never back to the system; elsewhere, nothing.

    By default it goes back whenever enough of it lies at the top of the heap, which depends on all that ran before, and
    a scheduler with many temporaries is then timed at anything up to twice its own work.
    """
    trim_threshold, mmap_threshold = -1, -3
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def measure_steps(pairs: Sequence[Pair], num_steps: int, repeats: int) -> list[dict[str, Any]]:
    """Microseconds a step of every pair, and the median over repeats of the ratio ours / theirs."""
    network = Instant()
    unit = NoiseStreams(0, range(SHAPE[0])).normal(SHAPE[1:])
    rows = []
    for pair in pairs:
        cls = getattr(diffusers, pair.scheduler)
        spacing = {"timestep_spacing": pair.grid} if "timestep_spacing" in inspect.signature(cls).parameters else {}
        scheduler = cls(**{**spacing, **pair.scheduler_options})
        sides = {
            "ours": ours(pair, network, unit, num_steps),
            "theirs": pair.loop(scheduler, network, unit, num_steps),
        }
        timed = partial(seconds, processor=torch.get_num_threads() == 1)
        with torch.no_grad():
            # the first round is the warm-up
            found = in_turn({side: partial(timed, work) for side, work in sides.items()}, repeats + 1)
        mine, other = (taken[1:] for taken in found.values())
        rows.append(
            {
                "sampler": pair.label,
                "ours_us": 1e6 * statistics.median(mine) / num_steps,
                "diffusers_us": 1e6 * statistics.median(other) / num_steps,
                "ratio": statistics.median(a / b for a, b in zip(mine, other, strict=True)),
            }
        )
    return rows


def measure_share(pairs: Sequence[Pair], batch_size: int, num_steps: int) -> list[dict[str, Any]]:
    """The sampler's own share of the time on the CIFAR-10 U-Net, in percent: all but what the backbone takes."""
    backbone = UNet(image_size=32).eval()
    # a fresh U-Net returns zeros, by whose norm the Langevin corrector would divide
    nn.init.normal_(backbone.conv_out.weight, std=0.02, generator=torch.Generator().manual_seed(0))
    clock: list[float] = []
    backbone.register_forward_pre_hook(lambda *_: clock.append(time.perf_counter()))
    backbone.register_forward_hook(lambda *_: clock.append(time.perf_counter()))
    unit = NoiseStreams(0, range(batch_size)).normal(SHAPE[1:])
    rows = []
    with torch.no_grad():
        backbone(unit, torch.zeros(batch_size))
        for pair in pairs:
            work = ours(pair, backbone, unit, num_steps)
            clock.clear()
            whole = seconds(work)
            spent = sum(clock[1::2]) - sum(clock[::2])
            rows.append({"sampler": pair.label, "share_percent": 100 * (1 - spent / whole), "seconds": whole})
    return rows


def main() -> None:
    """Measure, print and write ``results/overhead.json``."""
    parser = argparse.ArgumentParser(description="A sampler's step beside the scheduler of diffusers.")
    parser.add_argument("--steps", type=whole(1), default=50)
    parser.add_argument("--repeats", type=whole(1), default=15)
    parser.add_argument("--threads", type=whole(1), default=torch.get_num_threads())
    parser.add_argument("--unet-batch", type=whole(0), default=16, help="0 leaves the U-Net out")
    parser.add_argument("--output", type=output, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    print(f"microseconds a step on {SHAPE}, {args.threads} threads", flush=True)
    report: dict[str, Any] = {
        "shape": SHAPE,
        "threads": args.threads,
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "steps": measure_steps(PAIRS, args.steps, args.repeats),
    }
    print(table(report["steps"]), flush=True)
    if args.unet_batch:
        report |= {"unet_batch": args.unet_batch, "unet": measure_share(PAIRS, args.unet_batch, 3)}
        print(f"share of a sampler on the CIFAR-10 U-Net, batch {args.unet_batch}", table(report["unet"]), sep="\n")
    write_json(args.output, report)


if __name__ == "__main__":
    main()
