"""The manner in which threads of a network wait for each other, chosen before PyTorch is imported.

OpenMP's threads wait for each other after every operation, by default in a loop that keeps a core busy. On an idle
machine that is the fastest way. Where another program needs one of the cores, the loop takes it from the very thread
that is waited for, and a small network runs many times slower; threads that sleep instead cost a fifth on an idle
machine, and next to nothing there with large networks (``python -m benchmarks.busy``).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, MutableMapping

import psutil

_OWN_SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
_SECONDS = 0.2


def _cores() -> set[int]:
    """Numbers of the cores that this process may use."""
    return set(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def idle_cores() -> float:
    """Cores' worth of time that others leave to this process, measured over a fifth of a second."""
    usage = psutil.cpu_percent(_SECONDS, percpu=True)
    return sum(1 - percent / 100 for core, percent in enumerate(usage) if core in _cores())


def choose_wait_policy(
    environment: MutableMapping[str, str] = os.environ, *, idle: Callable[[], float] = idle_cores
) -> None:
    """Let waiting threads sleep where there are more of them than idle cores, and say so.

    To be called before PyTorch is imported. The results are the same to the bit. A setting of the user's own
    (OMP_WAIT_POLICY, GOMP_SPINCOUNT, KMP_BLOCKTIME, KMP_LIBRARY) is left as it is, and one thread waits for nobody.

    Args:
        environment: Where OMP_NUM_THREADS is looked up, and OMP_WAIT_POLICY set.
        idle: Measures the idle cores.
    """
    if "torch" in sys.modules or any(name in environment for name in _OWN_SETTINGS):
        return
    number = environment.get("OMP_NUM_THREADS", "").split(",")[0]
    threads = int(number) if number.isdecimal() else len(_cores())
    if threads < 2 or (found := idle()) > threads - 0.5:
        return
    environment["OMP_WAIT_POLICY"] = "PASSIVE"
    line = f"{found:.1f} cores are idle for {threads} threads: those that wait sleep (OMP_WAIT_POLICY=PASSIVE)"
    print(line, file=sys.stderr)
