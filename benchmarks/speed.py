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
import re
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.operators import shares
from benchmarks.options import device as named_device
from benchmarks.options import output, whole
from benchmarks.timing import Work, in_turn, seconds, spread, table
from benchmarks.unet_pair import SETTINGS, Side, Workbench
from experiment.precision import bf16_units
from experiment.workdir import write_json

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "results" / "speed.json"
FP32, BF16 = torch.float32, torch.bfloat16
THEIRS = (Side(False, FP32), Side(False, BF16))
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


def peak(
    dtype: torch.dtype, device: torch.device, num_images: int, *, channels: int = 256, size: int = 16
) -> Callable[[], float]:
    """A measure of what the processor can do in a precision: FLOP/s of a large 3x3 convolution, the best of 8."""
    x, weight = (
        torch.randn(shape, device=device).to(dtype).contiguous(memory_format=torch.channels_last)
        for shape in ((num_images, channels, size, size), (channels, channels, 3, 3))
    )
    flops = 2 * 9 * channels**2 * size**2 * len(x)
    return lambda: flops / min(seconds(lambda: F.conv2d(x, weight, padding=1)) for _ in range(8))


def check_equal(bench: Workbench, sides: tuple[Side, ...]) -> dict[str, float]:
    """Relative distance of every side's answer from that of theirs in float32.

    Raises:
        AssertionError: Our float32 network is not the same function.
    """
    # PyTorch's default lets convolutions of CUDA keep 10 bits of float32 (TF32), which says nothing of the networks
    tf32, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
    truth = bench.forward(THEIRS[0])()
    errors = {}
    for side in (*THEIRS[1:], *sides):
        errors[side.label] = float((bench.forward(side)() - truth).norm() / truth.norm())
        limit = 1e-4 if side.precision == FP32 else 0.1
        assert errors[side.label] < limit, f"{side.label} is off by {errors[side.label]:.1e}, more than {limit:g}"
    torch.backends.cudnn.allow_tf32 = tf32
    return errors


def measure(
    bench: Workbench, task: str, sides: tuple[Side, ...], rounds: int, peaks: dict[str, Callable[[], float]]
) -> list[dict[str, Any]]:
    """Seconds of all sides of a task, and FLOP/s at the peak of each precision, in turn; and ratios within a round."""
    work = {label: make() for label, make in works(bench, task, sides).items()}
    for function in work.values():
        function()
    found = in_turn(peaks | {label: partial(seconds, function) for label, function in work.items()}, rounds)
    profiled = (THEIRS[0].label, sides[-1].label) if sides and task in PROFILED else ()
    flops = forward_flops(bench.ours, tuple(bench.x.shape[1:])) * bench.batch_size
    rows = []
    for label in work:
        taken = found[label]
        row: dict[str, Any] = {"side": label, "images_per_second": bench.batch_size / statistics.median(taken)}
        for base in BASES:
            if base in work and base != label:
                row[f"over {base}"] = spread([b / a for a, b in zip(taken, found[base], strict=True)])
        if task == "forward":
            own = found["bf16" if "bf16" in label else "fp32"]
            row["share_of_peak"] = spread([flops / a / b for a, b in zip(taken, own, strict=True)])
            row["peak_gflops"] = statistics.median(own) / 1e9
        if label in profiled:
            row["profile"] = shares(work[label], bench.device)
        rows.append(row | {"seconds": taken})
    return rows


def peak_memory(task: str, label: str, given: list[str]) -> float | None:
    """GiB that a process of its own takes at most for the work of one side, done twice; None if it fails."""
    command = [sys.executable, "-m", "benchmarks.speed", *given, "--memory-of", task, label]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    return None if done.returncode else float(done.stdout.split()[-1])


def own_peak_memory(device: torch.device) -> float:
    """GiB that this process has taken at most so far; on the CPU as Linux says it."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    # getrusage counts the process that this one was forked from, too
    (kilobytes,) = re.findall(r"VmHWM:\s*(\d+)", Path("/proc/self/status").read_text())
    return int(kilobytes) / 2**20


def machine(device: torch.device) -> dict[str, Any]:
    """The facts that the figures depend on, without any name of the machine itself."""
    on_cpu = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "threads": torch.get_num_threads(),
        "bf16_units": bf16_units(device),
        "processor": torch.cuda.get_device_name(device) if device.type == "cuda" else on_cpu,
    }


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print a task's table."""
    columns = ("images_per_second", *(f"over {base}" for base in BASES), "share_of_peak", "peak_memory_gib")
    there = [column for column in columns if any(column in row for row in rows)]
    shown = [{"side": row["side"]} | {column: _cell(row.get(column, "")) for column in there} for row in rows]
    print(f"\n{title}", table(shown), sep="\n")
    for row in rows:
        if "profile" in row:
            listed = ", ".join(f"{kind} {100 * share:.1f} %" for kind, share in row["profile"].items())
            print(f"time of {row['side']}: {listed}", flush=True)


def _cell(of: Any) -> Any:
    return f"{of['median']:.2f} ({of['least']:.2f}-{of['most']:.2f})" if isinstance(of, dict) else of


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description="The CIFAR-10 U-Net beside diffusers'.", allow_abbrev=False)
    parser.add_argument("--batch-size", type=whole(1), default=16)
    parser.add_argument("--rounds", type=whole(1), default=7)
    parser.add_argument("--device", type=named_device, default="auto")
    parser.add_argument("--threads", type=whole(1, 4096), default=torch.get_num_threads())
    parser.add_argument("--tasks", nargs="+", choices=TITLES, default=list(TITLES))
    parser.add_argument("--sampling-steps", type=whole(1, 1000), default=20)
    parser.add_argument("--likelihood-steps", type=whole(1), default=2)
    parser.add_argument("--no-compile", action="store_true", help="ours without torch.compile")
    parser.add_argument("--no-memory", action="store_true", help="without the processes that peak memory takes")
    parser.add_argument("--quick", action="store_true", help="a tiny network, to see that all of it works")
    parser.add_argument("--output", type=output, help="default: benchmarks/results/speed.json; of a trial: none")
    parser.add_argument("--memory-of", nargs=2, metavar=("TASK", "SIDE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    # figures that others are told of are not replaced by a trial
    if args.output is None and not args.quick and set(args.tasks) == set(TITLES):
        args.output = RESULT
    return args


def main(arguments: list[str] | None = None) -> None:
    """Check, measure, print, write."""
    given = sys.argv[1:] if arguments is None else arguments
    args = parse(given)
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    network = "tiny" if args.quick else "cifar10"
    bench = Workbench(
        network,
        batch_size=args.batch_size,
        device=device,
        sampling_steps=args.sampling_steps,
        likelihood_steps=args.likelihood_steps,
    )
    sides = our_sides(compiled=not args.no_compile)
    if args.memory_of:
        task, label = args.memory_of
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
        "network": SETTINGS[network],
        "batch_size": args.batch_size,
        "rounds": args.rounds,
        "gflop_per_image": forward_flops(bench.ours, tuple(bench.x.shape[1:])) / 1e9,
        "distance_from_diffusers": errors,
        "tasks": {},
    }
    size = {"channels": 32, "size": 8} if args.quick else {}
    peaks = {"fp32": peak(FP32, device, args.batch_size, **size), "bf16": peak(BF16, device, args.batch_size, **size)}
    for task in args.tasks:
        # the longer ones vary less
        rounds = args.rounds if task in PROFILED else (args.rounds + 1) // 2
        rows = measure(bench, task, sides, rounds, peaks)
        if not args.no_memory:
            for row in rows:
                row["peak_memory_gib"] = peak_memory(task, row["side"], given)
        report["tasks"][task] = rows
        show(f"{TITLES[task].format(**vars(args))}, batch {args.batch_size}", rows)
    if args.output is not None:
        write_json(args.output, report)


if __name__ == "__main__":
    main()
