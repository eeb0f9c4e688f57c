"""Samples of one-step generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from models import Cond, Generator, ScoreModel, count_network_calls
from sde_lib import NoiseStreams

from .base import Hook, Sampler, SampleResult, StepState, apply_hooks, check_finite
from .registry import register_sampler


@register_sampler("generator")
class GeneratorSampler(Sampler):
    """One call of a one-step generator (``models.Generator``), which is no score model.

    Args:
        num_steps: Taken and unused, as the commands give it to all samplers.
        grid: Likewise.
    """

    def __init__(self, *, num_steps: int | None = None, grid: Any = None) -> None:
        self.num_steps, self.grid = num_steps, grid

    def sample(
        self,
        model: ScoreModel | Generator,
        x_T: Tensor,
        *,
        cond: Cond | None = None,
        noise: NoiseStreams | None = None,
        hooks: Sequence[Hook] = (),
    ) -> SampleResult:
        """Call the generator; see ``Sampler.sample``.

        Raises:
            ValueError: If the model is no generator.
        """
        if not isinstance(model, Generator):
            raise ValueError(
                f"sampler 'generator' is of one-step generators, got a {type(model).__name__}; take ddim or another"
            )
        sde, noise = model.sde, NoiseStreams.fresh(x_T.shape[0]) if noise is None else noise
        with torch.no_grad(), count_network_calls(model) as counter:
            check_finite(x_T, "start x_T")
            x = model(x_T, cond=cond)
        x = apply_hooks(hooks, StepState(0, 1, sde.t_max, 0.0, 1.0, 0.0, x, sde, noise))
        check_finite(x, "generator's answer")
        return SampleResult(x0=x, nfe=counter.calls)
