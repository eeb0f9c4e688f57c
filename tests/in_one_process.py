"""A whole split measured, and a set of samples drawn, in this process."""

from collections.abc import Sequence

import torch
from torch import Tensor

from data import AnyDataset
from evaluation.measurement import EvalSplit, Measurement
from evaluation.samples.sample_batch import draw_batch
from evaluation.samples.sample_conditions import SampleConditions
from experiment.conditions import Conditions
from likelihood import LikelihoodEstimator
from models import ScoreModel
from samplers import Sampler


def measure(
    estimator: LikelihoodEstimator,
    model: ScoreModel,
    dataset: AnyDataset,
    *,
    batch_size: int,
    num_images: int = 0,
    seed: int = 0,
    class_conditional: bool = False,
) -> Measurement:
    """All batches of a split, in order."""
    split = EvalSplit(
        dataset,
        batch_size=batch_size,
        num_images=num_images,
        seed=seed,
        conditions=Conditions(None, labels=class_conditional),
    )
    return Measurement([split.measure(k, estimator, model) for k in range(len(split))])


def draw(
    sampler: Sampler,
    model: ScoreModel,
    *,
    sample_shape: tuple[int, ...],
    num_samples: int,
    batch_size: int,
    seed: int = 0,
    classes: Sequence[int] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor, int]:
    """Draw samples in this process; see ``draw_batch``.

    Args:
        sampler: The sampler.
        model: The model.
        sample_shape: Shape of one sample.
        num_samples: How many.
        batch_size: How many at a time; no sample depends on it.
        seed: Seed of the run.
        classes: Of a conditional model: sample k is of class classes[k modulo their number].
        device: Where the model is.

    Returns:
        Samples [N, ...] on the CPU, their classes [N] (zeros if unconditional), and network calls a batch, at most.
    """
    samples, nfe = [], 0
    conditions = SampleConditions(Conditions(None, labels=bool(classes)), classes=classes or None)
    for first in range(0, num_samples, batch_size):
        index = range(first, min(first + batch_size, num_samples))
        cond = conditions.of(index, model.sde)
        result, _ = draw_batch(sampler, model, index, sample_shape=sample_shape, seed=seed, cond=cond, device=device)
        samples.append(result.x0.cpu())
        nfe = max(nfe, result.nfe)
    labels = conditions.observed(range(num_samples)).labels
    return torch.cat(samples), torch.zeros(num_samples, dtype=torch.int64) if labels is None else labels, nfe
