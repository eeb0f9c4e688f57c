"""The cost of a busy core: calls a second of the demo's network beside another program, by how threads wait.

Run ``python -m benchmarks.busy`` on a machine that is otherwise idle. Each way is timed in a process of its own, since
it is chosen when PyTorch is imported; the ways take turns, and the median of the rounds counts. "chosen" is what
``main.py`` does: it looks at the load first. The figures to read are the ratios to an idle machine with threads that
wait in a loop.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.options import whole

ROOT = Path(__file__).parent.parent
_WAYS = {"loop": {"GOMP_SPINCOUNT": "300000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "chosen": {}}
_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def calls_per_second(config: str, batch_size: int, seconds: float) -> float:
    """Calls of a config's network a second, in this process."""
    import torch

    from benchmarks.images import load_images
    from experiment.build import build_model
    from experiment.config import load_config

    loaded = load_config(config, [])
    dataset = load_images(loaded, "train")
    model = build_model(loaded, dataset.kind).eval()
    x, t = torch.randn(batch_size, *dataset.image_shape), torch.rand(batch_size)
    with torch.no_grad():
        for _ in range(3):
            model(x, t)
        begin, calls = time.perf_counter(), 0
        while time.perf_counter() - begin < seconds:
            model(x, t)
            calls += 1
    return calls / (time.perf_counter() - begin)


def _timed(way: str, busy_cores: int, args: argparse.Namespace) -> float:
    environment = {key: value for key, value in os.environ.items() if key not in _OWN} | _WAYS[way]
    command = [sys.executable, "-m", "benchmarks.busy", "--child", "--config", args.config]
    command += ["--batch-size", str(args.batch_size), "--seconds", str(args.seconds)]
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(busy_cores)]
    try:
        time.sleep(0.5)
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    finally:
        for other in others:
            other.kill()
            other.wait()
    return float(done.stdout.split()[-1])


def main(arguments: list[str] | None = None) -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", default="configs/vp/digits.py")
    parser.add_argument("--batch-size", type=whole(1), default=64)
    parser.add_argument("--seconds", type=whole(1), default=5, help="a measurement")
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--busy-cores", type=whole(1), default=1)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(calls_per_second(args.config, args.batch_size, args.seconds))
        return
    cells = [(way, cores) for way in _WAYS for cores in (0, args.busy_cores)]
    found: dict[tuple[str, int], list[float]] = {cell: [] for cell in cells}
    for _ in range(args.rounds):
        for cell in cells:
            found[cell].append(_timed(*cell, args))
    medians = {cell: statistics.median(values) for cell, values in found.items()}
    best = medians["loop", 0]
    print(f"{args.config}, batch {args.batch_size}; calls/s (slower than an idle machine whose threads loop)")
    print(f"{'threads that wait':>20} {'idle':>16} {f'{args.busy_cores} core busy':>16}")
    for way in _WAYS:
        row = [f"{medians[way, cores]:.2f} ({best / medians[way, cores]:.2f}x)" for cores in (0, args.busy_cores)]
        print(f"{way:>20} {row[0]:>16} {row[1]:>16}", flush=True)


if __name__ == "__main__":
    main()
