"""Time of some work by kind of operation."""

from __future__ import annotations

import re

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import Work

# the first that fits; what the compiler made has names of its own, or is part of the call of the compiled graph
KINDS = (
    ("convolutions, backward", r"convolution_backward|cudnn_convolution.*backward"),
    ("convolutions", r"convolution|conv2d"),
    ("attention", r"attention|bmm"),
    ("linear layers", r"addmm|linear|::mm$"),
    ("optimizer", r"_fused_adam|_foreach|optimizer|lerp"),
    ("norms, activations, additions, copies", r""),
)


def kind_of(operator: str) -> str:
    """The kind of an operator, by its name."""
    return next(kind for kind, pattern in KINDS if re.search(pattern, operator, re.IGNORECASE))


def shares(work: Work, device: torch.device, repeats: int = 2) -> dict[str, float]:
    """Share of the time of each kind of operation, adding up to 1.

    Args:
        work: What is profiled, already warm.
        device: Where it runs.
        repeats: How often it is done.
    """
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    with profile(activities=activities) as found:
        for _ in range(repeats):
            work()
    own_time = "self_device_time_total" if device.type == "cuda" else "self_cpu_time_total"
    times = dict.fromkeys((kind for kind, _ in KINDS), 0.0)
    for event in found.key_averages():
        times[kind_of(event.key)] += getattr(event, own_time)
    total = sum(times.values())
    return {kind: time / total for kind, time in times.items() if time > 0}
