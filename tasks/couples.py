"""Couples of noise and sample, by a flow: the data of a reflow (Liu et al. 2023)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from samplers import GridSampler, Hook, StepState
from sde_lib import NoiseStreams, RectifiedFlow


@dataclass(frozen=True)
class Couples:
    """A batch of couples.

    Attributes:
        noise: Of standard deviation 1, [B, ...].
        x0: The sample that the flow makes of it, [B, ...].
        straightness: S of each, [B]; see ``draw_couples``. None where the steps do not say.
        nfe: Network calls.
    """

    noise: Float[Tensor, "batch *shape"]
    x0: Float[Tensor, "batch *shape"]
    straightness: Float[Tensor, " batch"] | None
    nfe: int


@dataclass
class _SquaredVelocity:
    """The integral of |dx/dt|^2 over t along a walk, the mean over the numbers of each sample."""

    x: Tensor
    total: Tensor | float = 0.0
    steps: int = 0

    def __call__(self, state: StepState) -> None:
        self.total = self.total + (state.x - self.x).double().square().flatten(1).mean(1) / (state.t - state.s)
        self.x, self.steps = state.x, self.steps + 1


def draw_couples(
    model: ScoreModel,
    sampler: GridSampler,
    noise: NoiseStreams,
    *,
    sample_shape: tuple[int, ...],
    cond: Cond | None = None,
    device: torch.device | str = "cpu",
    hooks: tuple[Hook, ...] = (),
) -> Couples:
    """Draw couples (eps, x0): x0 is where the flow ends that begins at x_T = prior_std eps.

    On a ``RectifiedFlow``, whose paths would be straight in t, their straightness is, per number of a sample,

        S = integral over t of |dx/dt - (x_T - x0) / T|^2 = integral of |dx/dt|^2 - |x_T - x0|^2 / T,

    0 of straight paths (Liu et al. 2023, Section 2.1: S of theirs is its mean). Between two points of the grid paths
    are taken to be straight, so that a coarse grid finds less.

    Args:
        model: Any ScoreModel.
        sampler: One that follows the flow.
        noise: One stream a sample.
        sample_shape: Shape of one sample.
        cond: The condition of the samples, or None.
        device: Where the model is.
        hooks: See ``Sampler.sample``.

    Raises:
        ValueError: If the sampler does not follow the flow.
    """
    if not sampler.follows_flow:
        raise ValueError(
            f"couples need a sampler that follows the flow, got {type(sampler).__name__}; take heun, ddim, "
            "dpm_solver_pp, unipc or probability_flow, without noise"
        )
    x_T = sampler.prior_sample(model.sde, sample_shape, noise, device=device)
    squared = _SquaredVelocity(x_T)
    result = sampler.sample(model, x_T, cond=cond, noise=noise, hooks=[*hooks, squared])
    first = float(sampler.times(model.sde)[0])
    straightness = None
    # an adaptive solver stops at the ends alone
    if isinstance(model.sde, RectifiedFlow) and squared.steps > 2:
        straightness = squared.total - (x_T - result.x0).double().square().flatten(1).mean(1) / first
    return Couples(x_T / model.sde.prior_std_at(first), result.x0, straightness, result.nfe)
