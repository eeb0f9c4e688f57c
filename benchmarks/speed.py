"""Speed of the CIFAR-10 U-Net beside ``diffusers``' of the same architecture and weights.

Run ``python -m benchmarks.speed``: forward pass, training step, sampling by 20 steps of DDIM and the likelihood of the
probability flow, for ``diffusers`` as its documentation uses it (float32) and under bfloat16 autocast, and for ours in
both precisions. All sides of a row are timed in turn, round by round, together with a large convolution that tells the
processor's peak at that moment, so that what else the machine does falls on all of them: the figures to read are the
ratios. First both networks are shown to be the same function. Peak memory is that of a process of its own for each
side. Needs ``pip install -e '.[test]'``.
"""

from __future__ import annotations

import argparse
import copy
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import options
from benchmarks.operators import shares
from benchmarks.unet_pair import SETTINGS, Side, Work, Workbench
from experiment.precision import bf16_units
from experiment.workdir import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "speed.json"
FP32, BF16 = torch.float32, torch.bfloat16
THEIRS = (Side(False, FP32), Side(False, BF16))
TASKS = ("forward", "training_step", "sampling", "likelihood")
PROFILED = ("forward", "training_step")
TITLES = {
    "forward": "forward",
    "training_step": "training step",
    "sampling": "sampling, {sampling_steps} steps of DDIM",
    "likelihood": "likelihood, {likelihood_steps} steps of Heun",
}
PLAIN = "ours fp32, not prepared"
BASES = (*(side.label for side in THEIRS), PLAIN)


def forward_flops(backbone: nn.Module, image_shape: tuple[int, ...]) -> float:
    """Floating-point operations of one image, forward, counted for a copy of the network on the meta device."""
    ghost = copy.deepcopy(backbone).to("meta").eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        ghost(torch.empty(1, *image_shape, device="meta"), torch.empty(1, device="meta", dtype=torch.float64), None)
    return float(counter.get_total_flops())


def our_sides(*, compiled: bool) -> tuple[Side, ...]:
    """Ours, eager, and compiled if that works here."""
    sides = [Side(True, precision) for precision in (FP32, BF16)]
    return (*sides, *([Side(True, precision, True) for precision in (FP32, BF16)] if compiled else []))


def works(bench: Workbench, task: str, sides: tuple[Side, ...]) -> dict[str, Callable[[], Work]]:
    """The work of every side of a task, by label."""
    make = getattr(bench, task)
    if task != "likelihood":
        return {side.label: partial(make, side) for side in (*THEIRS, *sides)}
    # gradients with respect to the input are never compiled
    return {PLAIN: partial(make, None)} | {side.label: partial(make, side) for side in sides if not side.compiled}


class Peak:
    """A large 3x3 convolution, channels-last: what the processor can do in a precision."""

    def __init__(self, device: torch.device, *, channels: int = 256, size: int = 16, batch_size: int = 16) -> None:
        self.flops = 2 * 9 * channels**2 * size**2 * batch_size
        self._device = device
        self._inputs: dict[torch.dtype, tuple[torch.Tensor, torch.Tensor]] = {}
        for dtype in (FP32, BF16):
            shapes = ((batch_size, channels, size, size), (channels, channels, 3, 3))
            x, weight = (
                torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
                for shape in shapes
            )
            self._inputs[dtype] = x, weight

    def flops_per_second(self, dtype: torch.dtype, repeats: int = 8) -> float:
        """The best of some repeats."""
        x, weight = self._inputs[dtype]
        best = float("inf")
        with torch.no_grad():
            for _ in range(repeats):
                best = min(best, timed(lambda: F.conv2d(x, weight, padding=1), self._device)[0])
        return self.flops / best


def timed(work: Work, device: torch.device) -> tuple[float, Any]:
    """Seconds, and what the work returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    result = work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began, result


def check_equal(bench: Workbench, sides: tuple[Side, ...]) -> dict[str, float]:
    """Relative distance of every side's answer from that of theirs in float32.

    Raises:
        AssertionError: Our float32 network is not the same function.
    """
    truth = bench.forward(THEIRS[0])()
    errors = {}
    for side in (*THEIRS[1:], *sides):
        errors[side.label] = float((bench.forward(side)() - truth).norm() / truth.norm())
        limit = 1e-4 if side.precision == FP32 else 0.1
        assert errors[side.label] < limit, f"{side.label} is off by {errors[side.label]:.1e}, more than {limit:g}"
    return errors


def measure(bench: Workbench, task: str, sides: tuple[Side, ...], rounds: int, peak: Peak) -> list[dict[str, Any]]:
    """Seconds of all sides of a task, in turn, and ratios within a round."""
    work = {label: make() for label, make in works(bench, task, sides).items()}
    for function in work.values():
        function()
    seconds: dict[str, list[float]] = {label: [] for label in work}
    peaks: dict[torch.dtype, list[float]] = {FP32: [], BF16: []}
    for _ in range(rounds):
        for dtype, found in peaks.items():
            found.append(peak.flops_per_second(dtype))
        for label, function in work.items():
            seconds[label].append(timed(function, bench.device)[0])
    profiled = (THEIRS[0].label, sides[-1].label) if sides and task in PROFILED else ()
    profiles = {label: shares(work[label], bench.device) for label in profiled}
    flops = forward_flops(bench.ours, tuple(bench.x.shape[1:])) * bench.batch_size
    rows = []
    for label, taken in seconds.items():
        row: dict[str, Any] = {
            "side": label,
            "images_per_second": bench.batch_size / statistics.median(taken),
            "seconds": taken,
        }
        for base in work:
            if base != label and base in BASES:
                row[f"over {base}"] = spread([b / a for a, b in zip(taken, seconds[base], strict=True)])
        if task == "forward":
            own = peaks[BF16 if "bf16" in label else FP32]
            row["share_of_peak"] = spread([flops / a / b for a, b in zip(taken, own, strict=True)])
            row["peak_gflops"] = statistics.median(own) / 1e9
        if label in profiles:
            row["profile"] = profiles[label]
        rows.append(row)
    return rows


def spread(values: list[float]) -> dict[str, float]:
    """Median and ends."""
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}


def peak_memory(task: str, label: str, arguments: argparse.Namespace) -> float | None:
    """GiB that a process of its own takes at most for the work of one side, done twice."""
    command = [sys.executable, "-m", "benchmarks.speed", f"--memory-of={task}:{label}"]
    for option in ("batch_size", "device", "threads", "sampling_steps", "likelihood_steps"):
        command += [f"--{option.replace('_', '-')}={getattr(arguments, option)}"]
    command += ["--quick"] if arguments.quick else []
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "no word", file=sys.stderr)
        return None
    return float(done.stdout.strip().splitlines()[-1])


def own_peak_memory(device: torch.device) -> float:
    """GiB that this process has taken at most so far."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    status = Path("/proc/self/status")
    if status.is_file():
        # getrusage counts the process that this one was forked from, too
        kilobytes = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(kilobytes.split()[1]) / 2**20
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**30 if sys.platform == "darwin" else 2**20)


def machine(device: torch.device) -> dict[str, Any]:
    """The facts that the figures depend on, without any name of the machine itself."""
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "bf16_units": bf16_units(device),
        "processor": platform.machine(),
    }
    if device.type == "cuda":
        return found | {"processor": torch.cuda.get_device_name(device)}
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        lines = dict(line.split(":", 1) for line in cpuinfo.read_text().splitlines() if ":" in line)
        lines = {key.strip(): value.strip() for key, value in lines.items()}
        features = ("avx2", "avx512f", "avx512_bf16", "amx_tile", "amx_bf16")
        found["processor"] = lines.get("model name", found["processor"])
        found["features"] = [feature for feature in features if feature in lines.get("flags", "").split()]
    return found


def show(task: str, rows: list[dict[str, Any]], arguments: argparse.Namespace) -> None:
    """Print a task's table."""
    bases = [f"over {base}" for base in BASES if any(f"over {base}" in row for row in rows)]
    print(f"\n{TITLES[task].format(**vars(arguments))}, batch {arguments.batch_size}")
    print(
        f"{'':24s}{'images/s':>10s}"
        + "".join(f"{base.replace('over', 'times'):>30s}" for base in bases)
        + "   of peak   GiB"
    )
    for row in rows:
        line = f"{row['side']:24s}{row['images_per_second']:10.3g}"
        for base in bases:
            ratio = row.get(base)
            line += f"{'':30s}" if ratio is None else f"{_ratio(ratio):>30s}"
        share = row.get("share_of_peak")
        line += f"{'':10s}" if share is None else f"{100 * share['median']:8.0f} %"
        memory = row.get("peak_memory_gib")
        print(line + ("" if memory is None else f"{memory:6.2f}"), flush=True)
    for row in rows:
        if "profile" in row:
            listed = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in row["profile"].items())
            print(f"  time of {row['side']}: {listed}", flush=True)


def _ratio(of: dict[str, float]) -> str:
    return f"{of['median']:.2f} ({of['least']:.2f}-{of['most']:.2f})"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="The CIFAR-10 U-Net beside diffusers'.", allow_abbrev=False)
    parser.add_argument("--batch-size", type=options.whole(1), default=16)
    parser.add_argument("--rounds", type=options.whole(1), default=7)
    parser.add_argument("--device", type=options.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=options.whole(1, 4096), default=torch.get_num_threads())
    parser.add_argument("--tasks", type=options.some_of(TASKS), default=list(TASKS), help="separated by commas")
    parser.add_argument("--sampling-steps", type=options.whole(1, 1000), default=20)
    parser.add_argument("--likelihood-steps", type=options.whole(1), default=2)
    parser.add_argument("--no-compile", action="store_true", help="ours without torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="without the processes that peak memory takes")
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see that all of it works")
    parser.add_argument(
        "--output", type=options.output, help="default: benchmarks/results/speed.json; of a trial: none"
    )
    parser.add_argument("--memory-of", default="", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    # figures that others are told of are not replaced by a trial
    if args.output is None and not args.quick and set(args.tasks) == set(TASKS):
        args.output = str(RESULT)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, print, write."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    bench = Workbench(
        "tiny" if args.quick else "cifar10",
        batch_size=args.batch_size,
        device=device,
        sampling_steps=args.sampling_steps,
        likelihood_steps=args.likelihood_steps,
    )
    sides = our_sides(compiled=not args.no_compile)
    if args.memory_of:
        task, label = args.memory_of.split(":")
        work = works(bench, task, sides)[label]()
        for _ in range(2):
            work()
        print(own_peak_memory(device))
        return
    errors = check_equal(bench, sides)
    print("the same function; relative distance from diffusers fp32: ", end="")
    print(", ".join(f"{label} {error:.1e}" for label, error in errors.items()), flush=True)
    report: dict[str, Any] = {
        "machine": machine(device),
        "network": SETTINGS["tiny" if args.quick else "cifar10"],
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "gflop_per_image": forward_flops(bench.ours, tuple(bench.x.shape[1:])) / 1e9,
        "distance_from_diffusers": errors,
        "tasks": {},
    }
    peak = Peak(device, channels=32, size=8) if args.quick else Peak(device)
    for task in args.tasks:
        # the longer ones vary less
        rounds = args.rounds if task in ("forward", "training_step") else (args.rounds + 1) // 2
        rows = measure(bench, task, sides, rounds, peak)
        if not args.no_memory:
            for row in rows:
                row["peak_memory_gib"] = peak_memory(task, row["side"], args)
        report["tasks"][task] = rows
        show(task, rows, args)
    if args.output is not None:
        write_json(Path(args.output), report)


if __name__ == "__main__":
    main()
