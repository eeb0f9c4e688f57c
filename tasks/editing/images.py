"""Edited images: those of SDEdit, and those of another condition by the probability flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from samplers import GridSampler, ProbabilityFlowSampler
from sde_lib import SDE, NoiseStreams, derive_seed

from ..latents import noised

_DECODING = 5  # derives the seed of these draws from the run's


@dataclass(frozen=True)
class Edited:
    """Edited images.

    Attributes:
        x_t: The states that were sampled from, [B, ...].
        x0: The edited images, [B, ...].
        nfe: Network calls, those of encoding included.
        others: Other images of each, by name: "round_trip", decoded as it was encoded; "reconstruction", see
            ``reconstruct``; "before", by the weights before they were tuned.
    """

    x_t: Float[Tensor, "batch *shape"]
    x0: Float[Tensor, "batch *shape"]
    nfe: int
    others: dict[str, Float[Tensor, "batch *shape"]]


def time_of(sde: SDE, noise_ratio: float) -> float:
    """The time t of a noise level sigma / alpha.

    Args:
        sde: The SDE.
        noise_ratio: sigma / alpha, above 0.

    Raises:
        ValueError: If the SDE has no such level.
    """
    low, high = (float(one) for one in (-0.5 * sde.log_snr(torch.tensor([0.0, 1.0], dtype=torch.float64))).exp())
    if not low < noise_ratio <= high:
        raise ValueError(f"sigma / alpha of this SDE lies in ({low:.6g}, {high:.6g}], got {noise_ratio:g}; change it")
    log_snr = -2 * torch.tensor([noise_ratio], dtype=torch.float64).log()
    return float(sde.time_from_log_snr(log_snr))


def sdedit(
    model: ScoreModel,
    sampler: GridSampler,
    y: Float[Tensor, "batch *shape"],
    t: float,
    *,
    numbers: Sequence[int],
    cond: Cond | None = None,
    seed: int = 0,
) -> Edited:
    """SDEdit (Meng et al. 2021, Section 3): x_t = alpha y + sigma eps, then the sampler from t.

    Small t keeps y, large t makes an image of the model. Of Gaussian data N(0, c), what comes out is

        N(k alpha y, k^2 sigma^2 + v),  k = alpha c / (alpha^2 c + sigma^2),  v = c sigma^2 / (alpha^2 c + sigma^2).

    Args:
        model: The model.
        sampler: The sampler, which is started at t.
        y: Images, drawings, or what else is to become an image of the model.
        t: The time.
        numbers: The number of each image, from which its noise comes.
        cond: Condition of each image, or None.
        seed: Seed of the run.

    Raises:
        ValueError: If the sampler cannot start at t.
    """
    started = sampler.starting_at(model.sde, t)
    x_t = noised(model.sde, y, t, numbers=numbers, seed=seed)
    noise = NoiseStreams(derive_seed(seed, _DECODING), numbers)
    result = started.sample(model, x_t, cond=cond, noise=noise)
    return Edited(x_t, result.x0, result.nfe, {})


def invert(
    model: ScoreModel,
    flow: ProbabilityFlowSampler,
    x0: Float[Tensor, "batch *shape"],
    t: float,
    *,
    source: Cond | None = None,
    target: Cond | None = None,
    decoder: ScoreModel | None = None,
) -> Edited:
    """Follow the probability flow up to t under one condition, and down again under another.

    Under the same one it brings the image back, but for the solver's error. Between classes N(m1, C) and N(m0, C) an
    image moves by

        x' - x = (I - (I + r^2 C^-1)^(-1/2)) (m0 - m1),  r = sigma / alpha at t,

    which is m0 - m1 where t leaves nothing of the image.

    Args:
        model: The model, without guidance and without bounds of x0: a bound is no bijection.
        flow: The probability flow, which is started at t.
        x0: The images.
        t: The time.
        source: Condition of each image on the way up, or None.
        target: Condition on the way down.
        decoder: The model of the way down, such as a guided one; None for the same.

    Returns:
        The images under ``target``, with "round_trip", those under ``source``, among the others. Its calls are not
        counted.

    Raises:
        ValueError: If the flow cannot start at t.
    """
    started = flow.starting_at(model.sde, t)
    up = started.encode(model, x0, cond=source)
    down = started.decode(model if decoder is None else decoder, up.x, cond=target)
    back = started.decode(model, up.x, cond=source)
    return Edited(up.x, down.x, up.nfe + down.nfe, {"round_trip": back.x})


def reconstruct(
    model: ScoreModel,
    flow: GridSampler,
    x0: Float[Tensor, "batch *shape"],
    t: float,
    *,
    numbers: Sequence[int],
    cond: Cond | None = None,
    seed: int = 0,
) -> Float[Tensor, "batch *shape"]:
    """Images with noise of t, made free of it by the model: what AnoDDPM compares an image with (Wyatt et al. 2022).

    Args:
        model: The model.
        flow: The sampler.
        x0: The images.
        t: The time.
        numbers: The number of each image, from which its noise comes.
        cond: Condition of each image: its null condition, of models that have one.
        seed: Seed of the run.
    """
    return sdedit(model, flow, x0, t, numbers=numbers, cond=cond, seed=seed).x0
