"""The config of an imported model, at the import and in every command after it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from models.pretrained import BACKBONES, ModelPlan
from runtime.files import one_line
from sde_lib import sde_defaults

from ..network import DERIVED, OF_DATA, SHARED, network_defaults
from ..workdir import read_config
from .files import Config, flatten, plain


def sections_of(plan: ModelPlan) -> tuple[dict[str, Any], dict[str, Any]]:
    """``config.model`` and ``config.sde`` in full for a plan: from them alone the same model is built again."""
    options = plan.network
    model: dict[str, Any] = {
        "backbone": plan.backbone,
        "parameterization": plan.parameterization,
        "time_input": plan.time_input,
        "answers": plan.answers,
        "data_std": 0.5,
        "dequantizer": False,
        "learned_variance": False,
        "class_conditional": options.get("num_classes") is not None,
        **{key: plain(options[key]) for key in SHARED if key in options},
    }
    if "head_channels" in model:
        model["head_channels"] = model["head_channels"] or 0
    own = sorted(options.keys() - {*SHARED, DERIVED})
    if options.get("num_levels") is None:
        # an autoencoder that has no number of outputs a level is of data of any
        own = [key for key in own if key != "num_levels"]
    model["network"] = {key: plain(options[key]) for key in own}
    return model, sde_defaults(plan.sde["name"]) | plan.sde


def config_of_checkpoint(config: Config, plan: ModelPlan, checkpoint: str) -> Config:
    """The config of an imported model: the given one, with what it leaves to the checkpoint filled in.

    Args:
        config: The config. Where ``model.backbone`` is "checkpoint", it need not say anything of ``model`` and ``sde``.
        plan: What the imported model is.
        checkpoint: Its name, for the message.

    Returns:
        A new config, locked.

    Raises:
        ValueError: If the config says otherwise than the checkpoint: key, the one's value and the other's.
    """
    of_model, of_sde = sections_of(plan)
    leaves = config.model.get("backbone", "unet") == "checkpoint"
    said_model, said_sde = config.model.to_dict(), config.sde.to_dict()
    if leaves:
        said_model.pop("backbone")
    else:
        # what is left out has its default
        own = {"backbone": "unet"} | said_model
        options = {key: value for key, value in network_defaults(own["backbone"]).items() if key in of_model["network"]}
        own["network"] = {k: v for k, v in options.items() if k not in OF_DATA} | own.get("network", {})
        said_model, said_sde = own, sde_defaults(said_sde["name"]) | said_sde
    if said_model.get("time_input") == "auto":
        auto = "t999" if plan.build_sde().table_size is None else "index"
        said_model["time_input"] = "edm" if plan.parameterization == "edm" else auto
    _refuse_differences("model.", said_model, of_model, checkpoint, leaves=leaves)
    _refuse_differences("sde.", said_sde, of_sde, checkpoint, leaves=leaves)
    if not leaves:
        return config
    return _with_sections(config, of_model, of_sde)


def _refuse_differences(
    prefix: str, said: Mapping[str, Any], found: Mapping[str, Any], checkpoint: str, *, leaves: bool
) -> None:
    theirs = dict(flatten(dict(found)))
    pairs = dict(flatten(dict(said)))
    # the kind of network, and of SDE, say most
    for key in sorted(pairs, key=lambda key: (key not in ("backbone", "name"), key)):
        # keys that the backbone has no use for say nothing
        known = key in theirs or key.startswith("network.") or prefix == "sde."
        if known and not _alike(pairs[key], theirs.get(key)):
            fix = "leave it out" if leaves else "use a config with model.backbone=checkpoint, as configs/pretrained/ do"
            raise ValueError(
                f"config.{prefix}{key} is {one_line(repr(pairs[key]), 60)}, but checkpoint {checkpoint} has "
                f"{one_line(repr(theirs.get(key)), 60)}; correct it, or {fix}"
            )


def _alike(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, (int, float)):
        return math.isclose(one, other, rel_tol=1e-9)
    return one == other


def _with_sections(config: Config, model: dict[str, Any], sde: dict[str, Any]) -> Config:
    whole = ConfigDict(config.to_dict() | {"model": model, "sde": sde})
    whole.lock()
    return whole


def complete_config(config: Config, workdir: Path) -> Config:
    """The config with its "checkpoint" replaced by the model that was imported into a work directory.

    Args:
        config: The config; unchanged where ``model.backbone`` is something else.
        workdir: The work directory.

    Returns:
        A config of which models are built as of any. What it said itself of ``model`` and ``sde`` stays, for the work
        directory's own check.

    Raises:
        ValueError: If nothing was imported there.
    """
    if "model" not in config or config.model.get("backbone", "unet") != "checkpoint":
        return config
    saved = read_config(workdir)
    if saved is None or not any((workdir / "checkpoints").glob("step_*")):
        raise ValueError(
            f"{workdir} holds no imported model, for which config.model.backbone=checkpoint stands; run --mode import "
            "first, or pass its --workdir"
        )
    model, sde = saved.get("model"), saved.get("sde")
    if not isinstance(model, dict) or not isinstance(sde, dict) or model.get("backbone") not in BACKBONES:
        raise ValueError(f"{workdir / 'config.json'} is damaged (it says no model); restore it, or import again")
    said = {key: value for key, value in config.model.to_dict().items() if key != "backbone"}
    network = {**model.get("network", {}), **said.get("network", {})}
    whole = {key: plain(value) for key, value in {**model, **said, "network": network}.items()}
    return _with_sections(config, whole, {**sde, **config.sde.to_dict()})
