"""Ways from one latent to another, and the images along them: pair k is the same in any batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, ScoreModel
from runtime.registry import choices_message
from samplers import GridSampler, Hook, ProbabilityFlowSampler
from sde_lib import SDE, NoiseStreams, derive_seed

_Q_NOISE, _DECODING = 1, 2  # derive the seeds of these draws from the run's
_PARALLEL = 1e-6  # radians, below which a slerp is a lerp to float64's last digits


def _lerp(angle: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    return (1 - w).expand_as(angle), w.expand_as(angle)


def _circle(angle: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    phase = (0.5 * math.pi * w).expand_as(angle)
    # the weight of a at the end of b is 0, not the rounding of pi
    return torch.where(w == 1, 0.0, phase.cos()), phase.sin()


def _slerp(angle: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    flat = angle < _PARALLEL
    safe = torch.where(flat, 1.0, angle)
    return (
        torch.where(flat, 1 - w, ((1 - w) * safe).sin() / safe.sin()),
        torch.where(flat, w.expand_as(angle), (w * safe).sin() / safe.sin()),
    )


_WAYS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "circle": _circle,
    "lerp": _lerp,
    "slerp": _slerp,
}


def available_ways() -> list[str]:
    """Names of the ways of ``interpolate``."""
    return sorted(_WAYS)


def interpolate(
    a: Float[Tensor, "batch *shape"], b: Float[Tensor, "batch *shape"], weights: Sequence[float], *, way: str
) -> Float[Tensor, "weights batch *shape"]:
    """Go from a, at weight 0, to b, at weight 1, by way of c_a a + c_b b.

    "lerp" takes c = (1 - w, w): of two independent draws of N(0, I) it makes one of variance (1 - w)^2 + w^2, half of
    it in the middle. "circle" takes c = (cos(pi w / 2), sin(pi w / 2)), of which both squares sum to 1: N(0, C) is kept
    exactly, of any C; a mean m is not, it becomes (c_a + c_b) m, and two that are alike grow by sqrt(2) in the middle.
    "slerp" takes c = (sin((1 - w) h), sin(w h)) / sin h, with the angle h between the two, each taken as one
    vector (Shoemake 1985): norms go from one to the other. Its variance is that of "circle" up to O(1 / D).

    Args:
        a: The first ends, [B, ...].
        b: The others.
        weights: Weights w in [0, 1].
        way: One of ``available_ways()``.

    Returns:
        [W, B, ...] in the dtype of ``a``; the coefficients are in float64.

    Raises:
        ValueError: If the shapes differ, a weight is out of range, the way is unknown, or "slerp" is asked for between
            opposite vectors, or from a vector of zeros.
    """
    if way not in _WAYS:
        raise ValueError(choices_message("way", way, available_ways()))
    if a.shape != b.shape:
        raise ValueError(f"both ends must have one shape, got {list(a.shape)} and {list(b.shape)}; pass pairs")
    for w in weights:
        if not 0 <= w <= 1:
            raise ValueError(f"weights must lie in [0, 1], got {w:g}; 0 is the first end and 1 the second")
    wide_a, wide_b = a.double(), b.double()
    angle = _angle(wide_a, wide_b, checked=way == "slerp")
    between = []
    for w in torch.tensor(weights, dtype=torch.float64, device=a.device):
        of_a, of_b = (c.reshape(-1, *[1] * (a.ndim - 1)) for c in _WAYS[way](angle, w))
        between.append((of_a * wide_a + of_b * wide_b).to(a.dtype))
    return torch.stack(between)


def _angle(a: Tensor, b: Tensor, *, checked: bool) -> Tensor:
    """The angle between two samples, float64 [B]."""
    a, b = (one.unsqueeze(1).flatten(1) for one in (a, b))
    norm_a, norm_b = (one.norm(dim=1, keepdim=True) for one in (a, b))
    if checked and bool(((norm_a == 0) | (norm_b == 0)).any()):
        raise ValueError("slerp needs a direction at both ends, got a vector of zeros; take way=lerp")
    unit_a, unit_b = a / norm_a, b / norm_b
    # by the half angle, exact where the arc cosine loses its digits
    angle = 2 * torch.atan2((unit_a - unit_b).norm(dim=1), (unit_a + unit_b).norm(dim=1))
    if checked and bool((angle > math.pi - _PARALLEL).any()):
        raise ValueError("slerp has no way between opposite vectors, got a pair of them; take way=circle")
    return angle


def q_latents(
    sde: SDE,
    x0: Float[Tensor, "ends pairs *shape"],
    t: float,
    weights: Sequence[float],
    *,
    way: str,
    pairs: Sequence[int],
    seed: int = 0,
) -> Float[Tensor, "weights pairs *shape"]:
    """x_t = alpha c(x0_a, x0_b) + sigma eps, draws of q(x_t | x0) along a way between two images.

    Both ends of a pair share their noise eps, so that its variance is sigma^2 at every weight; with noise of their own
    a "lerp" would leave half of it in the middle, of which the model would make a blurred image. With "lerp" this is
    Ho et al. 2020, Section 4.4 (there with one noise for all that is interpolated, too).

    Args:
        sde: The SDE.
        x0: Both ends, [2, P, ...].
        t: The time.
        weights: See ``interpolate``.
        way: See ``interpolate``; of the images.
        pairs: Number of each pair, from which its noise comes.
        seed: Seed of the run.
    """
    between = interpolate(x0[0], x0[1], weights, way=way)
    eps = NoiseStreams(derive_seed(seed, _Q_NOISE), pairs).normal_like(x0[0])
    return torch.stack([sde.perturb(one, _times(t, one), eps) for one in between])


def flow_latents(
    model: ScoreModel,
    x0: Float[Tensor, "ends pairs *shape"],
    t: float,
    weights: Sequence[float],
    *,
    way: str,
    encoder: ProbabilityFlowSampler,
    cond: Cond | None = None,
) -> tuple[Float[Tensor, "weights pairs *shape"], int]:
    """The states x_t along a way between those that the probability-flow ODE takes two images to.

    Args:
        model: The model, without bounds of x0: a bound is no bijection.
        x0: Both ends, [2, P, ...].
        t: The time.
        weights: See ``interpolate``.
        way: See ``interpolate``; of the latents.
        encoder: The sampler whose ``encode`` is taken.
        cond: Condition of each pair, or None.

    Returns:
        The latents, and how often the network was called.
    """
    result = encoder.starting_at(model.sde, t).encode(model, x0.flatten(0, 1), cond=_repeated(cond, x0))
    a, b = result.x.unflatten(0, x0.shape[:2])
    return interpolate(a, b, weights, way=way), result.nfe


@dataclass(frozen=True)
class Interpolation:
    """Images between two.

    Attributes:
        x_t: The latents, [W, P, ...].
        x0: What the sampler made of them, [W, P, ...].
        nfe: Network calls, those of encoding the ends included.
    """

    x_t: Float[Tensor, "weights pairs *shape"]
    x0: Float[Tensor, "weights pairs *shape"]
    nfe: int


def interpolate_images(
    model: ScoreModel,
    sampler: GridSampler,
    x0: Float[Tensor, "ends pairs *shape"],
    t: float,
    weights: Sequence[float],
    *,
    way: str = "slerp",
    encoder: ProbabilityFlowSampler | None = None,
    cond: Cond | None = None,
    pairs: Sequence[int] | None = None,
    seed: int = 0,
    hooks: Sequence[Hook] = (),
) -> Interpolation:
    """Take two images to time t, go from one to the other there, and sample down from every stop.

    A sampler with noise draws the same along the way of a pair, which is continuous then. Weight w of pair k depends on
    the images, the seed, k and w alone, not on what else is in the batch, of a model and a sampler that keep this.

    Args:
        model: The model.
        sampler: The sampler, which is started at t.
        x0: Both ends, [2, P, ...], where the model is.
        t: The time, in (0, where the sampler begins].
        weights: See ``interpolate``.
        way: See ``interpolate``.
        encoder: Takes the ends up along the probability flow, see ``flow_latents``; None draws q(x_t | x0).
        cond: Condition of each pair, or None.
        pairs: Number of each pair; from 0 on if None.
        seed: Seed of the run.
        hooks: See ``Sampler.sample``.

    Raises:
        ValueError: If t or a weight is out of range, and as the parts.
    """
    if x0.ndim < 2 or len(x0) != 2:
        raise ValueError(f"x0 must be pairs, [2, P, ...], got {list(x0.shape)}; stack the two ends")
    numbers = range(x0.shape[1]) if pairs is None else pairs
    started, nfe = sampler.starting_at(model.sde, t), 0
    if encoder is None:
        x_t = q_latents(model.sde, x0, t, weights, way=way, pairs=numbers, seed=seed)
    else:
        x_t, nfe = flow_latents(model, x0, t, weights, way=way, encoder=encoder, cond=cond)
    noise = NoiseStreams(derive_seed(seed, _DECODING), [k for _ in x_t for k in numbers])
    result = started.sample(model, x_t.flatten(0, 1), cond=_repeated(cond, x_t), noise=noise, hooks=hooks)
    return Interpolation(x_t, result.x0.unflatten(0, x_t.shape[:2]), nfe + result.nfe)


def _repeated(cond: Cond | None, x: Tensor) -> Cond | None:
    """The condition of each pair for [W, P, ...], flattened."""
    return None if cond is None else cond[torch.arange(x.shape[1], device=x.device).repeat(len(x))]


def _times(t: float, x: Tensor) -> Tensor:
    return torch.full((len(x),), t, dtype=torch.float64, device=x.device)
