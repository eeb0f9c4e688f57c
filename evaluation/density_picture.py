"""The density that a model of points in the plane has learned, as a picture beside samples."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from data import VectorDataset
from experiment.pictures import save_density
from likelihood import FlowLikelihood
from models import Cond, ScoreModel
from samplers import Sampler
from sde_lib import NoiseStreams, derive_seed

_POINTS_A_SIDE = 64
_MARGIN = 0.15  # of the data's extent, on either side
_NUM_STEPS = 50
_NUM_SAMPLES = 2_000
_PICTURE = 0x706C6F74


def flow_density(
    model: ScoreModel,
    dataset: VectorDataset,
    points: Tensor,
    *,
    cond: Cond | None = None,
    num_steps: int,
) -> Tensor:
    """p(v) of the probability flow at vectors, by Heun steps on the log-SNR grid with the exact divergence.

    Args:
        model: The model.
        dataset: Its data, for what networks see of vectors.
        points: Vectors v, [N, D].
        cond: Classes of the points, int64 [N], of a conditional model.
        num_steps: Steps of the ODE.

    Returns:
        float64 [N].
    """
    flow = FlowLikelihood(dequantization="none", divergence="exact", solver="heun", num_steps=num_steps)
    x0 = dataset.space.encode(points).to(points.device)
    noise = NoiseStreams(0, range(len(points)))  # nothing is drawn
    return (-flow(model, x0, cond=cond, noise=noise).total - dataset.space.log_volume).exp()


def draw_density(
    path: Path, model: ScoreModel, dataset: VectorDataset, sampler: Sampler, *, seed: int, num_classes: int | None
) -> None:
    """Draw samples of a model beside the density of its flow, around the data.

    Args:
        path: PNG to write.
        model: The model.
        dataset: Points in the plane, [N, 2].
        sampler: What draws the samples.
        seed: Of the samples.
        num_classes: Of a conditional model: the density is the mean over the classes.
    """
    device = next(model.parameters()).device
    low, high = dataset.vectors.amin(0), dataset.vectors.amax(0)
    x, y = (
        torch.linspace(float(a - _MARGIN * (b - a)), float(b + _MARGIN * (b - a)), _POINTS_A_SIDE, dtype=torch.float64)
        for a, b in zip(low, high, strict=True)
    )
    points = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2).to(device)
    labels = [None] if num_classes is None else range(num_classes)
    conds = [label if label is None else torch.full((len(points),), label, device=device) for label in labels]
    density = torch.stack(
        [flow_density(model, dataset, points, cond=cond, num_steps=_NUM_STEPS) for cond in conds]
    ).mean(0)
    noise = NoiseStreams(derive_seed(seed, _PICTURE), range(_NUM_SAMPLES))
    cond = None if num_classes is None else torch.arange(_NUM_SAMPLES, device=device) % num_classes
    drawn = sampler.sample(model, sampler.prior_sample(model.sde, (2,), noise, device=device), cond=cond, noise=noise)
    grid = density.cpu().numpy().reshape(len(y), len(x))
    save_density(path, dataset.space.decode(drawn.x0).cpu().numpy(), x.numpy(), y.numpy(), grid)
