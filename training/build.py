"""From a config to the objects of a training: its options, loss, optimizer and state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from data import AnyKind
from experiment.build import build_model
from experiment.config import Config
from experiment.config.left_out import part_rates
from experiment.distillation.options import distillation_options
from experiment.distillation.teacher import begin_as, load_teacher
from experiment.from_checkpoints import load_base
from experiment.network import is_classifier, is_first_stage
from models import NetworkModel, NetworkScoreModel
from runtime.processes.collectives import shard
from sde_lib import SDE

from .bad_steps import BadSteps
from .changes import SettingsHistory, training_settings
from .ema import ExponentialMovingAverage, PowerFunctionEMA
from .losses import LOSSES, DistributionMatching, Loss, ProgressiveLoss, check_trains, make_loss
from .optimizers import build_optimizer
from .state import TrainingState
from .trainer import TrainingOptions


def build_loss(config: Config, sde: SDE, kind: AnyKind, teacher: NetworkScoreModel | None = None) -> Loss:
    """The loss of ``config.training``; one of a distillation takes its options from ``config.distillation``.

    Args:
        config: The config.
        sde: The SDE.
        kind: The data.
        teacher: The frozen teacher, of a distillation.

    Raises:
        ValueError: If it does not fit the SDE, or needs a teacher, or cannot have one.
    """
    name, joint = config.training.loss, bool(config.model.get("first_stage"))
    if name == "auto":
        name = "autoencoder" if is_first_stage(config) else "joint" if joint else name
    return make_loss(
        name,
        **distillation_options(
            config, name, None if name == "auto" else LOSSES.get(name), teacher, has_range=kind.seen_levels is not None
        ),
        sde=sde,
        parameterization=None if is_classifier(config) else config.model.parameterization,
        weighting=config.training.weighting,
        data_std=config.model.data_std,
        num_levels=kind.num_levels if joint else kind.seen_levels,
    )


def build_options(config: Config) -> TrainingOptions:
    """The options of ``config.training``, ``config.optim`` and ``config.data``, which have the names of the fields."""
    sections: dict[str, Any] = {"seed": config.seed, **config.model, **config.data, **config.optim, **config.training}
    sections["part_dropout"] = part_rates(config)
    # the section of an imported model has no key of which it has no use
    known = [field.name for field in fields(TrainingOptions) if field.name in sections]
    return TrainingOptions(**{name: sections[name] for name in known})


def build_state(config: Config, kind: AnyKind, device: torch.device, *, sharded: bool = False) -> TrainingState:
    """A fresh state on a device.

    Args:
        config: The config.
        kind: The data.
        device: The device of the model.
        sharded: Split the network, its average and the optimizer's state over the ranks.
    """
    base, teacher = load_base(config, device), load_teacher(config, kind, device)
    model = build_model(config, kind, base=base).to(device)
    if teacher is not None:
        begin_as(model, teacher)
    if not sharded:
        # here, since the optimizer's moments are laid out as the weights are; FSDP takes contiguous ones only
        model.backbone.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    ema = ExponentialMovingAverage(model, config.training.ema_decay)
    if sharded:
        for one in (model, ema.model):
            shard(one.backbone, getattr(one.backbone, "stages", []))
    state = _state_of(config, kind, model, ema, teacher and teacher.model)
    if sharded and isinstance(state.loss, (DistributionMatching, ProgressiveLoss)):
        raise ValueError(f"loss {state.loss.name!r} keeps other networks whole; set training.sharding=none")
    state.base = "" if base is None else base.digest
    state.teacher = "" if teacher is None else teacher.digest
    state.profiles = tuple(PowerFunctionEMA(model, sigma_rel) for sigma_rel in config.training.ema_profiles)
    return state


def state_of_weights(config: Config, kind: AnyKind, weights: Mapping[str, Tensor]) -> TrainingState:
    """A fresh state to be saved, not trained: the weights and their average are the same tensors.

    Args:
        config: The config.
        kind: The images.
        weights: The backbone's state dict.
    """
    model = build_model(config, kind, empty=True)
    ema = ExponentialMovingAverage(model, config.training.ema_decay)
    for one in (model, ema.model):
        one.backbone.load_state_dict(weights, assign=True)
    return _state_of(config, kind, model, ema)


def _state_of(
    config: Config,
    kind: AnyKind,
    model: NetworkModel,
    ema: ExponentialMovingAverage,
    teacher: NetworkScoreModel | None = None,
) -> TrainingState:
    training = config.training
    optimizer = build_optimizer(config, model)
    with torch.random.fork_rng(devices=[]):
        # of the head of a critic
        torch.manual_seed(config.seed)
        loss = build_loss(config, model.sde, kind, teacher)
    check_trains(loss, model)
    if isinstance(loss, DistributionMatching):
        loss.critic.optimize_by(build_optimizer(config, loss.critic))
    times = loss.time_sampler(model.sde, training.step_sampling)
    bad_steps = BadSteps(explosion_factor=training.explosion_factor, max_bad_steps=training.max_bad_steps)
    history = SettingsHistory(training_settings(config))
    return TrainingState(model, ema, optimizer, loss, times, kind, bad_steps, history)
