"""Samples while a run trains."""

from __future__ import annotations

import torch

from models import ClippedScoreModel
from samplers import DDIMSampler, StepState
from sde_lib import NoiseStreams

from .config import Config
from .distributed import Communication
from .images import to_uint8
from .logging import TrainingLog
from .state import TrainingState
from .stopping import StopRequest


class _PreviewStopped(Exception):  # noqa: N818
    pass


def log_preview(
    config: Config,
    state: TrainingState,
    log: TrainingLog | None,
    request: StopRequest,
    communication: Communication,
) -> None:
    """16 samples by 50 steps of DDIM, from the same noise every time; a request to stop does without them."""

    def stop(_: StepState) -> None:
        # of a sharded network no process can stop without the others
        if communication.any(bool(request)) if communication.sharded else request:
            raise _PreviewStopped

    device = next(state.model.parameters()).device
    noise = NoiseStreams(config.seed, range(16))
    model = ClippedScoreModel(state.ema.model)
    cond = torch.arange(16, device=device) % state.kind.num_classes if config.model.class_conditional else None
    sampler = DDIMSampler(num_steps=50)
    x_T = sampler.prior_sample(model.sde, state.kind.image_shape, noise, device=device)
    try:
        result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[stop])
    except _PreviewStopped:
        return
    if log is not None:
        log.samples(state.step, to_uint8(result.x0, state.kind.num_levels))
