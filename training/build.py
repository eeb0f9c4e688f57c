"""The loss and the optimizer of a config."""

from __future__ import annotations

from typing import Any

import torch
from torch.distributed.tensor import DTensor

from data import AnyKind
from experiment.config import Config
from models import NetworkScoreModel
from runtime.registry import choices_message
from sde_lib import SDE, LearnedVP

from .losses import ContinuousBoundLoss, DequantizedLoss, HybridLoss, Loss, make_loss


def build_loss(config: Config, sde: SDE, kind: AnyKind) -> Loss:
    """The loss of ``config.training``.

    Raises:
        ValueError: If it does not fit the SDE, or cannot train what ``config.model`` learns.
    """
    training = config.training
    loss = make_loss(
        training.loss,
        sde=sde,
        parameterization=config.model.parameterization,
        weighting=training.weighting,
        data_std=config.model.data_std,
        time_sampling=training.time_sampling,
        num_levels=kind.num_levels,
    )
    if config.model.learned_variance and not loss.trains_variance:
        raise ValueError(
            f"model.learned_variance needs a loss that trains it, got training.loss={training.loss}; use hybrid or vlb"
        )
    if config.model.dequantizer and not isinstance(loss, DequantizedLoss):
        raise ValueError(f"model.dequantizer needs training.loss=dequantized, got {training.loss}; set it")
    if isinstance(loss, HybridLoss) and not config.model.learned_variance:
        raise ValueError("training.loss=hybrid needs model.learned_variance; set it to True, or use training.loss=ddpm")
    if isinstance(loss, DequantizedLoss) and config.model.parameterization == "levels":
        raise ValueError(
            "training.loss=dequantized needs a model of what lies between levels, got model.parameterization=levels; "
            "use eps, v or edm, or training.loss=vlb_continuous"
        )
    if isinstance(sde, LearnedVP):
        _check_learned_schedule(config, loss)
    return loss


def _check_learned_schedule(config: Config, loss: Loss) -> None:
    model = config.model
    if not isinstance(loss, ContinuousBoundLoss):
        raise ValueError(
            f"a learned noise schedule needs training.loss=vlb_continuous, got {config.training.loss}; set it"
        )
    told_t = model.noise_input in ("index", "t999") or (model.noise_input == "auto" and model.parameterization != "edm")
    if told_t:
        raise ValueError(
            "a learned noise schedule moves t: the network must be told the noise level, "
            f"got model.noise_input={model.noise_input}; set log_snr"
        )


def build_optimizer(config: Config, model: NetworkScoreModel) -> torch.optim.Optimizer:
    """Adam or AdamW of ``config.optim``; a noise schedule that is learned does not decay.

    Raises:
        ValueError: If the name is unknown or a number is out of range.
    """
    optim = config.optim
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optim.name not in kinds:
        raise ValueError(choices_message("optimizer", optim.name, sorted(kinds)))
    groups: list[dict[str, Any]] = [{"params": list(model.parameters())}]
    if optim.weight_decay > 0 and isinstance(model.sde, torch.nn.Module):
        # 0 is no neutral place for a log-SNR or the logarithm of a slope, as it is for a network's weights
        schedule = list(model.sde.parameters())
        of_schedule = {id(parameter) for parameter in schedule}
        groups = [
            {"params": [parameter for parameter in model.parameters() if id(parameter) not in of_schedule]},
            {"params": schedule, "weight_decay": 0.0},
        ]
    # one pass over memory instead of one for each operation; what is learned beside a sharded network is not sharded,
    # and the two kinds cannot be in one pass
    mixed = len({isinstance(parameter, DTensor) for parameter in model.parameters()}) > 1
    how: dict[str, Any] = {"foreach": False} if mixed else {"fused": True}
    try:
        return kinds[optim.name](
            groups,
            lr=optim.learning_rate,
            betas=(optim.beta1, optim.beta2),
            eps=optim.eps,
            weight_decay=optim.weight_decay,
            **how,
        )
    except ValueError as error:
        raise ValueError(f"config.optim cannot be used: {error}; the defaults are in configs/default.py") from error
