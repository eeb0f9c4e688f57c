"""Measurements: quality, speed; run from the repository's root, as in ``python -m benchmarks.quality``."""

from runtime.threads import choose_wait_policy

choose_wait_policy()
