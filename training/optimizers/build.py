"""The optimizer of a config."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from experiment.config import Config
from models import NetworkModel
from runtime.processes.collectives import is_sharded
from runtime.registry import choices_message

from ..losses.critic import Critic
from .muon import MuonWithAdamW


def build_optimizer(config: Config, model: NetworkModel | Critic) -> torch.optim.Optimizer:
    """Adam, AdamW or Muon of ``config.optim``; a noise schedule that is learned does not decay.

    Raises:
        ValueError: If the name is unknown, a number is out of range, or Muon cannot train the network.
    """
    optim = config.optim
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optim.name not in (*kinds, "muon"):
        raise ValueError(choices_message("optimizer", optim.name, [*kinds, "muon"]))
    matrices = _muons_matrices(config, model) if optim.name == "muon" else []
    # 0 is no neutral place for a log-SNR or the logarithm of a slope, as it is for a network's weights
    schedule = list(model.sde.parameters()) if optim.weight_decay > 0 and isinstance(model.sde, torch.nn.Module) else []
    apart = {id(parameter) for parameter in (*matrices, *schedule)}
    rest = [parameter for parameter in model.parameters() if id(parameter) not in apart]
    groups: list[dict[str, Any]] = [{"params": rest}]
    if schedule:
        groups.append({"params": schedule, "weight_decay": 0.0})
    # one pass over memory instead of one for each operation; what is learned beside a sharded network is not sharded,
    # and the two kinds cannot be in one pass
    mixed = len({is_sharded(parameter) for parameter in model.parameters()}) > 1
    how: dict[str, Any] = {"foreach": False} if mixed else {"fused": True}
    settings = {
        "lr": optim.learning_rate,
        "betas": (optim.beta1, optim.beta2),
        "eps": optim.eps,
        "weight_decay": optim.weight_decay,
    }
    try:
        if optim.name == "muon":
            return MuonWithAdamW(matrices, groups, **settings)
        return kinds[optim.name](groups, **settings, **how)
    except ValueError as error:
        raise ValueError(f"config.optim cannot be used: {error}; the defaults are in configs/default.py") from error


def _muons_matrices(config: Config, model: NetworkModel | Critic) -> list[Tensor]:
    """The matrices that Muon trains.

    Raises:
        ValueError: If the model has none, or they are sharded, or it is a critic.
    """
    if isinstance(model, Critic):
        raise ValueError(
            f"optimizer 'muon' is not for loss {config.training.loss!r}, whose critic keeps the moments of Adam; set "
            "optim.name=adamw"
        )
    matrices = getattr(model.backbone, "hidden_matrices", [])
    if not matrices:
        got = config.model.backbone
        raise ValueError(f"optimizer 'muon' is of backbones dit and space_time, got {got}; set optim.name=adamw")
    if any(is_sharded(matrix) for matrix in matrices):
        raise ValueError("optimizer 'muon' needs whole matrices; set training.sharding=none or optim.name=adamw")
    return matrices
