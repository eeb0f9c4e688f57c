"""Measurements of images, and samples of what they leave open: sample j of image k is the same in any batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, Condition, LinearOperator, ScoreModel
from samplers import Hook, SampleResult
from sde_lib import NoiseStreams, derive_seed

from ..ensembles import draw_ensemble
from .methods import RestorationMethod

_MEASUREMENT = 1  # derives the seed of the measurements' noise, which is not that of the samples


def measure(
    operator: LinearOperator, x0: Float[Tensor, "batch *shape"], *, noise_std: float, seed: int = 0
) -> Float[Tensor, "batch *observed"]:
    """y = A x0 + noise_std n, where n of image k comes from a stream of (seed, k).

    Args:
        operator: A.
        x0: The images, from number 0 on.
        noise_std: Standard deviation of the noise.
        seed: Seed of the run.
    """
    operator.check(x0)
    y = operator.forward(x0)
    if noise_std == 0:
        return y
    noise = NoiseStreams(derive_seed(seed, _MEASUREMENT), range(len(x0)))
    return y + noise_std * noise.normal_like(y)


def draw_posterior(
    method: RestorationMethod,
    model: ScoreModel,
    y: Float[Tensor, "batch *observed"],
    numbers: Sequence[tuple[int, int]],
    *,
    cond: Cond | None = None,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
) -> SampleResult:
    """Draw from p(x0 | y), sample j of image k from a stream of (seed, k, j).

    Args:
        method: The method.
        model: What its ``observe`` has made of a model, perhaps bounded; the model itself without.
        y: The measurement of each sample, where the model is.
        numbers: Pairs (k, j) of image and sample, as many.
        cond: All else that the model is told of each sample, or None.
        seed: Seed of the run.
        hooks: See ``Sampler.sample``; called after those of the method.

    Returns:
        The samples; NFE counts calls of the network, with "twisted" for all particles of a sample at once.
    """
    if method.observe is not None:
        told = {} if cond is None else cond.given if isinstance(cond, Condition) else {"label": cond}
        cond = Condition(**told, measurement=y)
    return draw_ensemble(
        method.sampler,
        model,
        numbers,
        sample_shape=method.operator.shape,
        cond=cond,
        seed=seed,
        hooks=[*method.hooks(y), *hooks],
        device=y.device,
        dtype=y.dtype,
    )


def shown_measurement(operator: LinearOperator, y: Float[Tensor, "batch *observed"]) -> Float[Tensor, "batch *shape"]:
    """Measurements in the shape of images: as they are where they have as many pixels, else A^+ y, 0 where unseen."""
    if y.shape[2:] == torch.Size(operator.shape[1:]):
        return y.expand(-1, *operator.shape)
    return operator.pseudo_inverse(y)
