"""Samples while a run trains."""

from __future__ import annotations

import torch

from data import ImageKind
from experiment.config import Config
from experiment.pictures import as_array, has_picture, picture_of
from models import ClippedScoreModel, ScoreModel
from runtime.processes.collectives import Communication
from runtime.signals import StopRequest
from samplers import DDIMSampler, StepState
from sde_lib import NoiseStreams

from .log import TrainingLog
from .state import TrainingState


class _PreviewStopped(Exception):  # noqa: N818
    pass


def log_preview(
    config: Config,
    state: TrainingState,
    log: TrainingLog | None,
    request: StopRequest,
    communication: Communication,
) -> None:
    """A picture of samples by 50 steps of DDIM, from the same noise every time; a request to stop does without it."""

    def stop(_: StepState) -> None:
        # of a sharded network no process can stop without the others
        if communication.any(bool(request)) if communication.sharded else request:
            raise _PreviewStopped

    if not has_picture(state.kind):
        return
    device = next(state.model.parameters()).device
    of_images = isinstance(state.kind, ImageKind)
    count = 16 if of_images else 500
    noise = NoiseStreams(config.seed, range(count))
    model: ScoreModel = ClippedScoreModel(state.ema.model) if of_images else state.ema.model
    cond = torch.arange(count, device=device) % state.kind.num_classes if config.model.class_conditional else None
    sampler = DDIMSampler(num_steps=50)
    x_T = sampler.prior_sample(model.sde, state.kind.image_shape, noise, device=device)
    try:
        result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[stop])
    except _PreviewStopped:
        return
    if log is not None:
        log.samples(state.step, picture_of(as_array(result.x0, state.kind)))
