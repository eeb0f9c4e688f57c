"""Samplers that can be started at any time."""

from __future__ import annotations

from samplers import GridSampler

from ..sample import SampledRun


def grid_sampler_of(run: SampledRun, mode: str) -> GridSampler:
    """The sampler of a run, if it walks down a grid.

    Raises:
        ValueError: If it does not.
    """
    if not isinstance(run.sampler, GridSampler):
        raise ValueError(
            f"--mode {mode} needs a sampler that walks down a grid, got sampling.sampler="
            f"{run.config.sampling.sampler}; take ancestral or probability_flow"
        )
    return run.sampler
