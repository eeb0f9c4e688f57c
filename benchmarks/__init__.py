"""Measurements: quality, speed; run from the repository's root, as in ``python -m benchmarks.quality``."""
