"""From a config to objects: the only place, with evaluation, where a config's keys become keyword arguments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import get_args

import torch

from data import AnyDataset, AnyKind, ImageDataset, ImageKind, VectorKind, VideoDataset, downscale, load_dataset
from models import (
    Answer,
    ClippedScoreModel,
    ConsistencyModel,
    Dequantizer,
    FirstStage,
    Generator,
    NetworkModel,
    NetworkScoreModel,
    NoisyClassifier,
    ScoreModel,
    ThresholdedScoreModel,
    make_parameterization,
)
from runtime.messages import say
from runtime.processes.rendezvous import place
from samplers import Sampler, make_sampler
from sde_lib import SDE, check_sde, make_sde

from .config import Config, data_root, parse_options
from .control.network import build_controlled
from .frozen.run import FrozenRun
from .latents.joint import build_own_first_stage
from .network import build_backbone, is_classifier, is_first_stage
from .warnings.prior import cure_of_no_signal


def build_sde(config: Config) -> SDE:
    """The SDE of ``config.sde``: its name, and its own options.

    Raises:
        ValueError: If it is unknown, or no model of it could be sampled.
    """
    options = {key: value for key, value in config.sde.items() if key != "name"}
    sde = make_sde(config.sde.name, **options)
    try:
        check_sde(sde)
    except ValueError as error:
        cure = cure_of_no_signal(config.sde.to_dict())
        raise ValueError(f"{error}, or {cure}" if cure else str(error)) from error
    return sde


def build_dataset(config: Config, split: str, channels: int | None = None) -> AnyDataset:
    """A split of ``config.data``; what it has to say, the first process of a job says.

    Args:
        config: The config.
        split: ``"train"`` or ``"test"``.
        channels: Number of channels where ``config.data`` leaves it open.
    """
    data = config.data
    dataset = load_dataset(
        data.dataset,
        root=data_root(config),
        split=split,
        image_size=data.image_size or None,
        channels=data.channels or channels,
        options=parse_options(data.get("options", "")),
    )
    if data.get("downscale"):
        dataset = _downscaled(dataset, data.downscale)
    if data.get("given_frames"):
        dataset = _after(dataset, data.given_frames)
    if place()[0] == 0:
        for note in dataset.notes:
            say(note)
    return dataset


def _downscaled(dataset: AnyDataset, factors: Sequence[int]) -> ImageDataset:
    if not isinstance(dataset, ImageDataset) or isinstance(dataset, VideoDataset):
        got = "clips" if isinstance(dataset, VideoDataset) else "vectors"
        raise ValueError(f"data.downscale is of images, but {dataset.name} holds {got}; leave it out")
    return downscale(dataset, factors)


def _after(dataset: AnyDataset, given_frames: int) -> VideoDataset:
    if not isinstance(dataset, VideoDataset):
        raise ValueError(f"data.given_frames is of clips, but {dataset.name} holds none; leave it out")
    return dataset.after(given_frames)


def build_model(config: Config, kind: AnyKind, *, empty: bool = False, base: FrozenRun | None = None) -> NetworkModel:
    """The network of ``config.model`` for a kind of data, initialised from ``config.seed``.

    Args:
        config: The config.
        kind: The data.
        empty: Leave the network on the meta device, without memory, for weights that are there already.
        base: The frozen model of a ControlNet; None without one.

    Raises:
        ValueError: If the network cannot work on such data.
    """
    model = config.model
    _check_has_levels(config, kind)
    parameterization = make_parameterization(
        model.parameterization,
        time_input=model.time_input,
        data_std=model.data_std,
        num_levels=kind.seen_levels,
    )
    sde = build_sde(config)
    with torch.random.fork_rng(devices=[]), torch.device("meta") if empty else nullcontext():
        torch.manual_seed(config.seed)
        if base is None:
            backbone = build_backbone(config, kind, outputs_per_channel=parameterization.outputs_per_channel)
        else:
            backbone = build_controlled(config, kind, base)
        dequantizer = Dequantizer(kind.sample_shape[0]) if model.dequantizer else None
        first_stage = build_own_first_stage(config, kind, sde)
    if is_classifier(config):
        return NoisyClassifier(backbone, sde, time_input=model.time_input)
    if is_first_stage(config):
        assert isinstance(kind, ImageKind)
        return FirstStage(backbone, sde, num_frames=kind.num_frames)
    answers = model.get("answers", "posterior_mean")
    network = NetworkScoreModel(
        backbone, sde, parameterization, learned_variance=model.learned_variance, dequantizer=dequantizer,
        first_stage=first_stage, answers=answers if answers in get_args(Answer) else "posterior_mean",
    )  # fmt: skip
    of_one_call = {"consistency": ConsistencyModel, "generator": Generator}.get(answers)
    return network if of_one_call is None else of_one_call(network, data_std=model.data_std)


def build_sampler(config: Config) -> Sampler:
    """The sampler of ``config.sampling``."""
    sampling = config.sampling
    options = parse_options(sampling.options)
    for name in ("num_steps", "grid", "record_trajectory"):
        if name in options:
            raise ValueError(f"{name} is no option in config.sampling.options; set config.sampling.{name}")
    sampler = make_sampler(sampling.sampler, num_steps=sampling.num_steps, grid=sampling.grid, **options)
    if not isinstance(sampler, Sampler):
        raise ValueError(f"sampler {sampling.sampler!r} is a {type(sampler).__name__}; make it a subclass of Sampler")
    return sampler


def _check_has_levels(config: Config, kind: AnyKind) -> None:
    """Refuse what is of grey levels alone for data without.

    Raises:
        ValueError: Naming the first such key.
    """
    model, training = config.model, config.training
    of_levels = {
        "model.parameterization": (model.parameterization, ["levels"]),
        "model.dequantizer": (bool(model.dequantizer), [True]),
        "training.loss": (training.loss, ["vlb", "vlb_continuous", "dequantized"]),
        "sampling.threshold_x0": (config.sampling.threshold_x0 > 0, [True]),
    }
    for key, (value, refused) in of_levels.items():
        if kind.seen_levels is None and value in refused:
            got = "vectors" if isinstance(kind, VectorKind) else "latents"
            raise ValueError(f"{key}={value} is of data with grey levels, got {got}; leave it at its default")


def bound_x0(config: Config, model: ScoreModel, kind: AnyKind) -> ScoreModel:
    """The model with its x0 brought into the range of the data, as ``config.sampling`` says.

    Vectors and latents have no range.
    """
    if kind.seen_levels is None:
        return model
    if config.sampling.threshold_x0 > 0:
        return ThresholdedScoreModel(model, quantile=config.sampling.threshold_x0)
    return ClippedScoreModel(model) if config.sampling.clip_x0 else model


def pick_device(config: Config) -> torch.device:
    """The device of ``config.device``: see ``named_device``."""
    return named_device(config.device)


def named_device(name: str) -> torch.device:
    """A device by name; "auto" takes a GPU if there is one.

    Raises:
        ValueError: If the device does not exist.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda"):
            raise AssertionError("it does not do float64")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} cannot be used ({reason}); use auto, cpu or cuda") from error
    return device
