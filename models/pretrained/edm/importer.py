"""Checkpoints of EDM (Karras et al. 2022), as state dicts: its DDPM++, NCSN++ and ADM, with three preconditionings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from runtime.registry import choices_message

from ..shared.plan import ModelPlan, PlannedModel
from ..shared.settings import Config, Settings
from ..shared.tensors import read_tensors
from .names import edm_sources
from .settings import plan_edm_adm, plan_edm_song

Preconditioning = Literal["edm", "vp", "ve"]

_CLASSES: dict[Any, Preconditioning] = {"EDMPrecond": "edm", "VPPrecond": "vp", "VEPrecond": "ve"}
# arguments of the preconditioners
_OF_PRECONDITIONING = (
    "class_name", "sigma_data", "sigma_min", "sigma_max", "beta_d", "beta_min", "M", "epsilon_t", "use_fp16",
)  # fmt: skip
_CONVERT = "run in a checkout of EDM: torch.save(pickle.load(open(FILE, 'rb'))['ema'].state_dict(), 'FILE.pt')"


def _with_preconditioning(
    backbone: str, network: dict[str, Any], settings: Settings, kind: Preconditioning
) -> ModelPlan:
    """The plan with SDE, parameterization and time input (Karras et al. 2022, Table 1)."""
    settings.refuse_unless(sigma_data=0.5)
    if kind == "vp":
        settings.refuse_unless(M=1000)
        beta_min = settings.number("beta_min", 0.1)
        sde = {"name": "vp", "beta_min": beta_min, "beta_max": beta_min + settings.number("beta_d", 19.9)}
        return ModelPlan(backbone, network, sde, "eps", "t999")
    low, high = (0.02, 100.0) if kind == "ve" else (0.002, 80.0)
    said_low, said_high = settings.number("sigma_min", low), settings.number("sigma_max", high)
    # EDM's own 0 and infinity say nothing
    ends = {"sigma_min": said_low or low, "sigma_max": said_high if math.isfinite(said_high) else high}
    read = ("score", "log_half_sigma") if kind == "ve" else ("edm", "edm")
    return ModelPlan(backbone, network, {"name": "ve", **ends}, *read)


def plan_edm(
    tensors: Mapping[str, Tensor], config: Config, *, preconditioning: Preconditioning | None, path: Path
) -> ModelPlan:
    """Plan a model from the tensors and settings of EDM.

    Args:
        tensors: The network's state dict, without prefix.
        config: See ``from_edm``.
        preconditioning: See ``from_edm``.
        path: The file, for messages.

    Raises:
        ValueError: In one line: a setting is missing, unknown, or contradicts the tensors.
    """
    settings = Settings(config)
    class_name = settings.take("class_name")
    named = None if class_name is None else _CLASSES[settings.choice("class_name", None, tuple(_CLASSES))]
    kind = preconditioning or named
    if kind is None:
        raise ValueError(
            "config must say class_name, EDMPrecond, VPPrecond or VEPrecond, which the tensors do not; EDM's own "
            "checkpoints are EDMPrecond"
        )
    if kind not in _CLASSES.values():
        raise ValueError(choices_message("preconditioning", kind, sorted(_CLASSES.values())))
    if named is not None and kind != named:
        raise ValueError(f"config's class_name is {class_name}, but preconditioning is {kind!r}; leave one of them out")
    settings.ignore(_OF_PRECONDITIONING)
    backbone, plan = ("adm", plan_edm_adm) if "out_conv.weight" in tensors else ("ncsnpp", plan_edm_song)
    try:
        network = plan(tensors, settings)
    except (IndexError, KeyError, ZeroDivisionError) as error:
        raise ValueError(
            f"checkpoint {path} is no SongUNet or DhariwalUNet of EDM, or tensors are missing: it has "
            f"{next(iter(tensors), 'nothing')}; check the source, or fetch it again"
        ) from error
    model = _with_preconditioning(backbone, network, settings, kind)
    settings.finish()
    return model


def _is_filter(tensor: Tensor, backbone: str) -> bool:
    """Tell taps times taps, of sum 1, as EDM's layers register them: those of an ADM are (1, 1) / 2."""
    if tensor.dim() != 4:
        return False
    square = tensor.double()[0, 0]
    taps = square.sum(0)
    return torch.allclose(square, torch.outer(taps, taps)) and (backbone != "adm" or taps.tolist() == [0.5, 0.5])


def from_edm(
    path: Path | str, config: Config | None = None, *, preconditioning: Preconditioning | None = None
) -> PlannedModel:
    """Read a network of EDM, from a state dict.

    EDM publishes pickles that carry code, which are not read here; to convert one, where you trust it, run in a
    checkout of EDM::

        net = pickle.load(open("edm-cifar10-32x32-cond-vp.pkl", "rb"))["ema"]
        torch.save(net.state_dict(), "edm-cifar10-32x32-cond-vp.pt")

    The structure of a ``SongUNet`` is read off its tensors; a ``DhariwalUNet`` needs ``img_resolution`` and what
    differs from its class's defaults. What maps the labels of augmentation is kept for further training; without such
    labels it adds nothing. Where ``label_dropout`` says that it was trained without its class now and then, the label
    -1, no class, is one of its labels.

    Args:
        path: The state dict of the preconditioned network, whose names start with ``model.``, or of the one inside.
        config: Arguments of the preconditioner's constructor (``class_name``, ``model_type``, ``dropout``, ...), as a
            mapping, flags, or the path of a JSON file; whatever the tensors say too is compared.
        preconditioning: "edm", "vp" or "ve" in place of the config's ``class_name``. EDM's own checkpoints are "edm",
            those called "vp" and "ve" too: that is their network. For "edm" and "ve" the noise ends at ``sigma_min``
            and ``sigma_max`` of the config, or at 0.002 and 80, or 0.02 and 100.

    Returns:
        The model, in evaluation mode, of data in [-1, 1].

    Raises:
        ValueError: In one line: the file is a pickle or cannot be read, the config contradicts it, or tensors are
            missing, unexpected, or of another shape or kind.
    """
    path = Path(path)
    tensors = read_tensors(path, "model.", convert=_CONVERT)
    plan = plan_edm(tensors, {} if config is None else config, preconditioning=preconditioning, path=path)
    # what maps augmentation labels is of no use to an ADM here, since it adds nothing without them
    unused = ("resample_filter", "map_augment.weight") if plan.backbone == "adm" else ("resample_filter",)
    filters = [tensor for name, tensor in tensors.items() if name.endswith("resample_filter")]
    if not all(torch.equal(one, filters[0]) and _is_filter(one, plan.backbone) for one in filters):
        raise ValueError(f"checkpoint {path} resamples with filters that EDM's networks do not have; fetch it again")
    weights = {name: tensor for name, tensor in tensors.items() if not name.endswith(unused)}
    return plan.load(weights, edm_sources, path=path)
