"""Weights that are tuned until what they decode scores well: DiffusionCLIP, against any differentiable score."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from models import Cond, NoisyClassifier, ScoreModel
from samplers import DDIMSampler, GridSampler, ProbabilityFlowSampler
from sde_lib import SDE, last_noisy_time


class ImageScore(Protocol):
    """A differentiable score of images, the larger the better, such as log p(class | image) or a likeness of CLIP."""

    def __call__(self, x0: Float[Tensor, "batch *shape"], /) -> Float[Tensor, " batch"]:
        """The score of each image, whose grey levels lie in [-1, 1], [B]."""
        ...


@dataclass(frozen=True)
class ClassScore:
    """log p(class | x0) of a classifier of noisy images at t = 0.

    Attributes:
        classifier: The classifier.
        label: The class.
    """

    classifier: NoisyClassifier
    label: int

    def __call__(self, x0: Float[Tensor, "batch *shape"], /) -> Float[Tensor, " batch"]:
        """The score of each image, [B]."""
        return self.log_probs(x0)[:, self.label]

    def log_probs(self, x0: Float[Tensor, "batch *shape"]) -> Float[Tensor, "batch classes"]:
        """log p of every class, [B, K]."""
        return self.classifier.class_log_prob(x0, torch.zeros(len(x0), dtype=torch.float64, device=x0.device))


@dataclass(frozen=True)
class TuningOptions:
    """Options of ``tune``.

    Attributes:
        num_updates: Updates of the weights.
        learning_rate: Of Adam.
        batch_size: Images of an update.
        identity_weight: What the mean |x' - x|, which keeps the image, is multiplied by.
    """

    num_updates: int = 50
    learning_rate: float = 1e-4
    batch_size: int = 16
    identity_weight: float = 10.0


def few_steps(sde: SDE, t: float, steps: int) -> DDIMSampler:
    """The sampler of few steps that gradients pass through: DDIM without noise from t on, equal steps in log-SNR.

    Args:
        sde: The SDE.
        t: Where it begins.
        steps: Calls of the network in every update, at least 2; DiffusionCLIP takes 6 (Kim et al. 2022, Section 3.3).
    """
    end = last_noisy_time(sde)
    first, last = sde.log_snr(torch.tensor([t, end], dtype=torch.float64))
    times = sde.time_from_log_snr(first + torch.linspace(0, 1, steps, dtype=torch.float64) * (last - first))
    times[0], times[-1] = t, end
    # where noise is left at 0, the last call is the denoising
    return DDIMSampler(grid=times if end == 0 else torch.cat([times, times.new_zeros(1)]))


def latents_of(
    model: ScoreModel,
    flow: ProbabilityFlowSampler,
    x0: Float[Tensor, "batch *shape"],
    t: float,
    *,
    cond: Cond | None = None,
) -> tuple[Float[Tensor, "batch *shape"], int]:
    """The states at t that the probability flow of a model takes images to, and the network calls."""
    result = flow.starting_at(model.sde, t).encode(model, x0, cond=cond)
    return result.x, result.nfe


_Model = TypeVar("_Model", bound=ScoreModel)


def tune(
    model: _Model,
    sampler: GridSampler,
    score: ImageScore,
    x_t: Float[Tensor, "batch *shape"],
    x0: Float[Tensor, "batch *shape"],
    *,
    cond: Cond | None = None,
    options: TuningOptions | None = None,
    progress: Callable[[float], object] | None = None,
) -> _Model:
    """A copy of a model, tuned until what it decodes of latents scores well (DiffusionCLIP, Kim et al. 2022, Eq. 7-9).

    The loss is -score(x') + w mean|x' - x|, with x' sampled from x_t by the tuned weights; gradients pass through all
    steps of the sampler. Update k takes the images k B, ..., k B + B - 1, and begins again at the last.

    Args:
        model: The model, which stays as it is.
        sampler: The sampler, of few steps, which begins at the time of the latents.
        score: The score.
        x_t: Latents of images, as ``latents_of`` gives them.
        x0: The images.
        cond: Condition of each, or None.
        options: Of the updates.
        progress: Called with the loss after each update.

    Raises:
        FloatingPointError: If the loss stops being finite.
    """
    options = TuningOptions() if options is None else options
    tuned = copy.deepcopy(model).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=options.learning_rate)
    for k in range(options.num_updates):
        first = k * options.batch_size
        rows = torch.arange(first, first + min(options.batch_size, len(x0)), device=x0.device) % len(x0)
        drawn = sampler.unroll(tuned, x_t[rows], cond=None if cond is None else cond[rows]).x0
        loss = edit_loss(score, drawn, x0[rows], identity_weight=options.identity_weight)
        if not bool(torch.isfinite(loss)):
            raise FloatingPointError(f"the loss stopped being finite at update {k}; lower learning_rate")
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if progress is not None:
            progress(float(loss.detach()))
    return tuned.requires_grad_(False)


def edit_loss(
    score: ImageScore,
    drawn: Float[Tensor, "batch *shape"],
    x0: Float[Tensor, "batch *shape"],
    *,
    identity_weight: float,
) -> Float[Tensor, ""]:
    """-score(x') + w mean|x' - x|, the mean over images."""
    return (-score(drawn) + identity_weight * (drawn - x0).flatten(1).abs().mean(1)).mean()


def recognized(score: ClassScore, images: Sequence[Tensor]) -> list[Tensor]:
    """True where a classifier finds the class of the score more likely than the others, of each set of images, [B]."""
    with torch.no_grad():
        return [score.log_probs(one).argmax(1) == score.label for one in images]
