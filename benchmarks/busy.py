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
from functools import partial
from pathlib import Path

import torch
from torch.utils.benchmark import Timer

from benchmarks.options import whole
from benchmarks.timing import in_turn, table
from benchmarks.trained import load_images
from experiment.build import build_model
from experiment.config import load_config

ROOT = Path(__file__).parent.parent
CONFIG, BATCH_SIZE = "configs/vp/digits.py", 64
_WAYS = {"loop": {"GOMP_SPINCOUNT": "300000"}, "sleep": {"OMP_WAIT_POLICY": "PASSIVE"}, "chosen": {}}
_OWN = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")


def calls_per_second(seconds: int) -> float:
    """Calls of a config's network a second, in this process."""
    config = load_config(CONFIG, [])
    dataset = load_images(config, "train")
    model = build_model(config, dataset.kind).eval()
    x, t = torch.randn(BATCH_SIZE, *dataset.image_shape), torch.rand(BATCH_SIZE)
    timer = Timer("model(x, t)", globals={"model": model, "x": x, "t": t}, num_threads=torch.get_num_threads())
    with torch.no_grad():
        return 1 / timer.blocked_autorange(min_run_time=seconds).mean


def _timed(way: str, busy_cores: int, seconds: int) -> float:
    environment = {key: value for key, value in os.environ.items() if key not in _OWN} | _WAYS[way]
    command = [sys.executable, "-m", "benchmarks.busy", "--child", f"--seconds={seconds}"]
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
    parser = argparse.ArgumentParser(description="Calls a second beside a busy core, by how threads wait.")
    parser.add_argument("--seconds", type=whole(1), default=5, help="a measurement")
    parser.add_argument("--rounds", type=whole(1), default=3)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        print(calls_per_second(args.seconds))
        return
    loads = {"idle": 0, "one core busy": 1}
    measures = {(way, load): partial(_timed, way, loads[load], args.seconds) for way in _WAYS for load in loads}
    medians = {cell: statistics.median(values) for cell, values in in_turn(measures, args.rounds).items()}
    best = medians["loop", "idle"]
    print(f"{CONFIG}, batch {BATCH_SIZE}; calls/s (times that an idle machine whose threads loop is faster)")
    shown = {cell: f"{rate:.2f} ({best / rate:.2f}x)" for cell, rate in medians.items()}
    print(table([{"waiting threads": way} | {load: shown[way, load] for load in loads} for way in _WAYS]))


if __name__ == "__main__":
    main()
