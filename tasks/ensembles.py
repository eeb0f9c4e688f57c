"""Ensembles: several samples of each image's law, of which sample j of image k is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from models import Cond, ScoreModel
from samplers import Hook, Sampler, SampleResult
from sde_lib import NoiseStreams, derive_seed


def draw_ensemble(
    sampler: Sampler,
    model: ScoreModel,
    numbers: Sequence[tuple[int, int]],
    *,
    sample_shape: tuple[int, ...],
    cond: Cond | None = None,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> SampleResult:
    """Draw samples, number j of image k from a stream of (seed, k, j).

    Args:
        sampler: The sampler.
        model: The model.
        numbers: Pairs (k, j) of image and sample.
        sample_shape: Shape of one sample.
        cond: What the model is told of each pair's image, or None.
        seed: Seed of the run.
        hooks: See ``Sampler.sample``.
        device: Where the model is.
        dtype: That of the samples.

    Returns:
        The samples, in the order of the pairs.

    Raises:
        ValueError: If the sampler does not fit the SDE.
        FloatingPointError: If the state stops being finite.
    """
    noise = NoiseStreams(seed, [derive_seed(k, j) for k, j in numbers])
    x_T = sampler.prior_sample(model.sde, sample_shape, noise, device=device)
    cond = None if cond is None else cond.to(device)
    return sampler.sample(model, x_T.to(dtype), cond=cond, noise=noise, hooks=hooks)
