"""Samples while a network is trained."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from data import AnyKind, ImageKind
from experiment.pictures import has_picture
from models import ClippedScoreModel, ScoreModel
from samplers import DDIMSampler, StepState
from sde_lib import NoiseStreams


class _PreviewStopped(Exception):  # noqa: N818
    pass


def preview_samples(
    model: ScoreModel, kind: AnyKind, *, seed: int, class_conditional: bool, stops: Callable[[], bool]
) -> Tensor | None:
    """Samples by 50 steps of DDIM, from the same noise every time.

    Args:
        model: The model.
        kind: The data that it is for.
        seed: Seed of the noise.
        class_conditional: Tell the model the classes, in turn.
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
    of_images = isinstance(kind, ImageKind)
    count = 16 if of_images else 500
    noise = NoiseStreams(seed, range(count))
    cond = torch.arange(count, device=device) % kind.num_classes if class_conditional else None
    sampler = DDIMSampler(num_steps=50)
    x_T = sampler.prior_sample(model.sde, kind.image_shape, noise, device=device)
    bounded = ClippedScoreModel(model) if of_images else model
    try:
        result = sampler.sample(bounded, x_T, cond=cond, noise=noise, hooks=[stop])
    except _PreviewStopped:
        return None
    return result.x0
