"""Fingerprints of measurements and of samples: all that they depend on, to the bit, as JSON gives it back."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from data import AnyKind, Space
from experiment.checkpoints.weights import digest_of, weights_digest
from experiment.config import Config, flatten
from experiment.guidance import Reference
from experiment.plugins import plugin_digests
from likelihood import available_likelihoods
from models import NetworkModel, ScoreModel

from .measurement import EvalSplit

_ROOMS = (
    *("runtime", "sde_lib", "data", "models", "samplers", "likelihood", "experiment", "tasks", "evaluation"),
    "commands",
)
_OF_MODEL = (
    *("data.dataset", "data.options", "data.image_size", "data.channels", "data.downscale", "data.condition"),
    *("sde.", "model.", "control."),
)
# These change no value, or are in the fingerprint under another name.
_FREE = (
    *("eval.ode_max_nfe", "eval.likelihoods", "eval.num_images", "eval.precision", "eval.compile"),
    *("sampling.num_samples", "sampling.classes", "sampling.png_folder", "sampling.precision", "sampling.compile"),
    "control.base",
    *("sampling.guidance_reference", "sampling.guidance_reference_weights", "sampling.classifier"),
)


@functools.cache
def _code_digest() -> str:
    """Digest of the project's own text: who edits a sampler must not be given the samples of before."""
    root, total = Path(__file__).parent.parent, hashlib.sha256()
    for path in sorted(path for name in _ROOMS for path in (root / name).rglob("*.py")):
        total.update(f"{path.relative_to(root)} {hashlib.sha256(path.read_bytes()).hexdigest()};".encode())
    return total.hexdigest()


def _common(
    config: Config,
    section: str,
    model: ScoreModel | NetworkModel,
    step: int,
    space: Space,
    network: dict[str, Any],
    device: str,
) -> dict[str, Any]:
    """All that a value depends on, of whatever kind: settings, weights and code."""
    fixed = (*_OF_MODEL, f"{section}.")
    found = {"step": step, "weights": weights_digest(model), "seed": config.seed}
    found |= {"space": asdict(space), "network": network, "device": device}
    found |= {"torch": torch.__version__, "code": _code_digest()}
    found["plugins"] = plugin_digests(config.plugins)
    return found | {key: value for key, value in flatten(config) if key.startswith(fixed) and key not in _FREE}


def measurement_fingerprints(
    config: Config,
    model: NetworkModel,
    step: int,
    split: EvalSplit,
    step_weights: dict[str, list[float]],
    network: dict[str, Any],
    *,
    by_class: bool = False,
    names: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """All that the values of a batch depend on, for each measure.

    A setting of ``eval`` whose name begins with another likelihood's ("ode_rtol" for "vlb") is not in it.

    Args:
        config: The config.
        model: The model that is measured.
        step: The training step of its weights.
        split: The images.
        step_weights: What steps are drawn by, of the likelihoods that draw them so.
        network: How the network computes.
        by_class: The values are those of every class: the settings of that are in it too.
        names: The measures; those of ``config.eval.likelihoods`` if there are none.
    """
    dataset, count = split.dataset, split.num_images
    common = _common(config, "eval", model, step, dataset.space, network, split.device.type)
    of_samples = [one[:count] for one in (dataset.stored, dataset.labels, *dataset.beside.tensors)]
    common |= {"images": digest_of(*of_samples), "num_images": count}
    prefixes = {name.split("_")[0] for name in available_likelihoods()} | (set() if by_class else {"classify"})
    result = {}
    for name in names or config.eval.likelihoods:
        foreign = tuple(f"eval.{prefix}_" for prefix in prefixes - {name.split("_")[0]})
        ours = {key: value for key, value in common.items() if not key.startswith(foreign)}
        if name in step_weights:
            ours["step_weights"] = digest_of(torch.tensor(step_weights[name], dtype=torch.float64))
        result[name] = json.loads(json.dumps(ours))
    return result


def samples_fingerprint(
    config: Config,
    model: ScoreModel,
    step: int,
    kind: AnyKind,
    classes: Sequence[int] | None,
    network: dict[str, Any],
    device: torch.device,
    reference: Reference | None = None,
) -> dict[str, Any]:
    """All that sample k depends on.

    Args:
        config: The config.
        model: The model that samples, with what guides it.
        step: The training step of its weights.
        kind: The images that it is for.
        classes: The classes that are drawn in turn.
        network: How the network computes.
        device: Where it does.
        reference: The model that guidance moves away from.
    """
    found = _common(config, "sampling", model, step, kind.space, network, device.type)
    if reference is not None:
        theirs = {key: value for key, value in flatten(reference.config) if key.startswith(_OF_MODEL)}
        found["reference"] = {"step": reference.step, "weights": weights_digest(reference.model), **theirs}
    return json.loads(json.dumps(found | {"image_shape": kind.image_shape, "classes": classes}))
