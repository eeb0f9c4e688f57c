"""Samples while a network is trained."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from data import AnyKind, VectorKind
from experiment.pictures import has_picture
from models import ClippedScoreModel, Cond, ScoreModel
from samplers import DDIMSampler, StepState
from sde_lib import NoiseStreams


class _PreviewStopped(Exception):  # noqa: N818
    pass


def preview_count(kind: AnyKind | None) -> int:
    """Number of samples that are shown: few images, many points."""
    return 500 if isinstance(kind, VectorKind) else 16


def preview_samples(
    model: ScoreModel, kind: AnyKind, *, seed: int, cond: Cond | None, stops: Callable[[], bool]
) -> Tensor | None:
    """Samples by 50 steps of DDIM, or by as many as the model answers, from the same noise every time.

    Args:
        model: The model.
        kind: The data that it is for.
        seed: Seed of the noise.
        cond: The condition of the samples, or None.
        stops: Asked after each step; True gives them up.

    Returns:
        x0, [16 or 500, ...]; None where they were given up, or such data have no picture.
    """

    def stop(_: StepState) -> None:
        if stops():
            raise _PreviewStopped

    if not has_picture(kind):
        return None
    device = next(model.parameters()).device
    of_levels, count = kind.seen_levels is not None, preview_count(kind)
    noise = NoiseStreams(seed, range(count))
    sampler = DDIMSampler(num_steps=model.own_steps or 50)
    x_T = sampler.prior_sample(model.sde, kind.sample_shape, noise, device=device)
    bounded = ClippedScoreModel(model) if of_levels else model
    try:
        result = sampler.sample(bounded, x_T, cond=None if cond is None else cond.to(device), noise=noise, hooks=[stop])
    except _PreviewStopped:
        return None
    return result.x0
