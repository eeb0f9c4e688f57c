"""Training a model on a tensor, without a config or files."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from data import ConditionMaker, Dataset, GivenValues, ImageDataset, TensorDataset, VectorDataset
from experiment.build import named_device
from experiment.conditions import Conditions
from models import ConsistencyModel, EDMParameterization, Generator, NetworkScoreModel

from .ema import ExponentialMovingAverage
from .losses import Loss, check_trains, make_loss
from .state import TrainingState
from .trainer import Trainer, TrainingOptions

Model = TypeVar("Model", bound=NetworkScoreModel | ConsistencyModel)


def fit(
    model: Model,
    data: Tensor | Dataset,
    *,
    steps: int,
    labels: Tensor | None = None,
    values: Tensor | None = None,
    conditions: Sequence[ConditionMaker] = (),
    loss: str | Loss = "auto",
    step_sampling: str = "uniform",
    ema_decay: float = 0.9999,
    device: str = "auto",
    **options: Any,
) -> Model:
    """Train a model with Adam on your own data.

    Args:
        model: The model; its weights are trained in place. A ``ConsistencyModel``, such as a ``Generator``, needs a
            ``Loss`` of its own, with the teacher if it has one.
        data: Images, uint8 [N, C, H, W] with grey levels 0 .. 255, which the model sees in [-1, 1]; or floats [N, ...],
            which it sees as they are; or a data set, as ``load_dataset`` gives it.
        steps: Optimizer steps.
        labels: Classes, int64 [N], of a network that is told them; of a data set pass none, it has its own.
        values: Floats [N, K] of order 1, of a network that is told them; a data set has its own, which the condition
            "values" tells.
        conditions: Makers of what the network is told besides, such as ``make_conditions(("lowres",))``, of images.
        loss: A loss or its name; "auto" is L_simple on the table, or denoising score matching in continuous time.
        step_sampling: "uniform", "low_discrepancy" or "importance"; see ``Loss.time_sampler``.
        ema_decay: Decay of the moving average of the weights in the long run, in [0, 1); a short training averages
            about its last tenth.
        device: The device to train on; "auto" takes a GPU if there is one.
        **options: Other fields of ``TrainingOptions``, such as ``batch_size``, ``learning_rate``, ``warmup_steps``,
            ``grad_clip``, ``seed``, ``random_flip``, ``condition_dropout``, ``part_dropout`` and ``condition_noise_t``.

    Returns:
        The moving average of the model, in evaluation mode: sample from it, and measure it.

    Raises:
        ValueError: If the data cannot be trained on, or labels, values or loss do not go with the model.
        FloatingPointError: If more than ten steps in a row are not finite.

    Example:
        >>> model = NetworkScoreModel(UNet(image_size=32), Tabulated.ddpm(), EpsParameterization())
        >>> trained = fit(model, images, steps=10_000)
    """
    conditional = bool(getattr(model.backbone, "num_classes", None))
    dataset = _dataset(data, labels, values, model)
    loss = _checked_loss(model, loss, dataset)
    model.to(named_device(device)).requires_grad_(True)
    # before the optimizer, whose moments are laid out as the weights are
    model.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    state = TrainingState(
        model,
        ExponentialMovingAverage(model, ema_decay),
        torch.optim.Adam(model.parameters(), fused=True),
        loss,
        loss.time_sampler(model.sde, step_sampling),
    )
    kind = dataset.kind if isinstance(dataset, (ImageDataset, VectorDataset)) else None
    makers = [*conditions, *([] if values is None else [GivenValues()])]
    told = Conditions(kind, labels=conditional, makers=makers)
    trainer = Trainer(state, dataset, TrainingOptions(steps, class_conditional=conditional, **options), conditions=told)
    # a step seeds the global generators, for dropout; the caller's streams go on as if nothing had been drawn
    with torch.random.fork_rng():
        trainer.run()
    model.eval()
    average = state.ema.model
    assert isinstance(average, type(model))
    return average


def _checked_loss(model: NetworkScoreModel | ConsistencyModel, loss: str | Loss, dataset: Dataset) -> Loss:
    """The loss, if it is of this SDE and data, and trains what the model learns."""
    levels = dataset.space.num_levels
    if isinstance(loss, str):
        if isinstance(model, Generator):
            raise ValueError(f"a generator needs a loss with its teacher, got {loss!r}; pass DistributionMatching(...)")
        parameterization = getattr(model, "parameterization", None)
        kind = "edm" if isinstance(parameterization, EDMParameterization) else "eps"
        loss = make_loss(loss, sde=model.sde, parameterization=kind, weighting="auto", num_levels=levels)
    if not isinstance(loss, Loss):
        raise ValueError(f"loss must be a name or a Loss, got {loss!r}; pass make_loss(...)")
    loss.check(model.sde)
    if loss.num_levels not in (None, levels):
        raise ValueError(f"the loss is of {loss.num_levels} grey levels, the data of {levels}; give both the same")
    check_trains(loss, model)
    return loss


def _dataset(
    data: Tensor | Dataset,
    labels: Tensor | None,
    values: Tensor | None,
    model: NetworkScoreModel | ConsistencyModel,
) -> Dataset:
    conditional = bool(getattr(model.backbone, "num_classes", None))
    if isinstance(data, Dataset) and (labels is not None or values is not None):
        raise ValueError("labels and values are for tensors, got a data set, which has its own; leave them out")
    if isinstance(data, Tensor) and conditional and labels is None:
        raise ValueError(f"a network of {model.backbone.num_classes} classes needs labels, got None; pass int64 [N]")
    if labels is not None and not conditional:
        raise ValueError("labels need a network that is told them; build it with num_classes, or leave them out")
    if isinstance(data, Dataset):
        return data
    labels = torch.zeros(len(data), dtype=torch.int64) if labels is None else labels
    num_classes = int(labels.max()) + 1 if len(labels) else 1
    values = None if values is None else values.float().cpu()
    if data.dtype == torch.uint8:
        return ImageDataset(data.cpu(), labels.cpu(), 256, num_classes, "tensor", "train", values=values)
    return TensorDataset(data.cpu(), labels.cpu(), num_classes, values=values)
