"""Samples, drawn a batch at a time: sample k of a seed is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models import Cond, ScoreModel
from samplers import Hook, Sampler, SampleResult
from sde_lib import NoiseStreams

from ..measurement import Values
from .trajectory import TrajectoryHook


def draw_batch(
    sampler: Sampler,
    model: ScoreModel,
    index: range,
    *,
    sample_shape: tuple[int, ...],
    seed: int = 0,
    cond: Cond | None = None,
    device: torch.device | str = "cpu",
    hooks: Sequence[Hook] = (),
    num_trajectories: int = 0,
) -> tuple[SampleResult, Values]:
    """Draw a batch; sample k comes from stream (seed, k), whatever else is in the batch.

    Args:
        sampler: The sampler.
        model: The model.
        index: The numbers k of the samples.
        sample_shape: Shape of one sample.
        seed: Seed of the run.
        cond: The condition of the samples, or None.
        device: Where the model is.
        hooks: See ``Sampler.sample``.
        num_trajectories: Of how many samples to keep states on the way.

    Returns:
        What the sampler made, and those states, see ``TrajectoryHook.arrays``.
    """
    noise = NoiseStreams(seed, index)
    x_T = sampler.prior_sample(model.sde, sample_shape, noise, device=device)
    cond = None if cond is None else cond.to(device)
    if num_trajectories < 1:
        return sampler.sample(model, x_T, cond=cond, noise=noise, hooks=hooks), {}
    trajectory = TrajectoryHook(x_T, num_trajectories)
    result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[*hooks, trajectory])
    return result, trajectory.arrays()
