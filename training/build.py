"""From a config to objects: the only place, with evaluation, where a config's keys become keyword arguments."""

from __future__ import annotations

import torch

from data import ImageDataset, load_dataset
from models import NetworkScoreModel, make_parameterization
from models.backbones import UNet
from samplers import Sampler, make_sampler
from sde_lib import SDE, choices_message, make_sde

from .config import Config, data_root, parse_options


def build_sde(config: Config) -> SDE:
    """The SDE of ``config.sde``: its name, and its own options."""
    options = {key: value for key, value in config.sde.items() if key != "name"}
    return make_sde(config.sde.name, **options)


def build_dataset(config: Config, split: str) -> ImageDataset:
    """A split of ``config.data``."""
    data = config.data
    return load_dataset(
        data.dataset,
        root=data_root(config),
        split=split,
        image_size=data.image_size or None,
        channels=data.channels or None,
    )


def build_model(config: Config, dataset: ImageDataset) -> NetworkScoreModel:
    """The network of ``config.model`` for the images of a data set, initialised from ``config.seed``.

    Raises:
        ValueError: If the network cannot work on such images.
    """
    channels, height, width = dataset.image_shape
    if height != width:
        raise ValueError(f"the U-Net needs square images, got {height}x{width}; use dataset 'folder' with image_size")
    model = config.model
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        backbone = UNet(
            image_size=height,
            in_channels=channels,
            channels=model.channels,
            channel_mult=tuple(model.channel_mult),
            num_res_blocks=model.num_res_blocks,
            attention_resolutions=tuple(model.attention_resolutions),
            num_heads=model.num_heads,
            dropout=model.dropout,
            scale_shift_norm=model.scale_shift_norm,
            norm_groups=model.norm_groups,
            num_classes=dataset.num_classes if model.class_conditional else None,
        )
    parameterization = make_parameterization(
        model.parameterization, noise_input=model.noise_input, data_std=model.data_std
    )
    return NetworkScoreModel(backbone, build_sde(config), parameterization)


def build_sampler(config: Config) -> Sampler:
    """The sampler of ``config.sampling``."""
    sampling = config.sampling
    return make_sampler(
        sampling.sampler, num_steps=sampling.num_steps, grid=sampling.grid, **parse_options(sampling.options)
    )


def build_optimizer(config: Config, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """Adam or AdamW of ``config.optim``.

    Raises:
        ValueError: If the name is unknown or a number is out of range.
    """
    optim = config.optim
    kinds = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    if optim.name not in kinds:
        raise ValueError(choices_message("optimizer", optim.name, sorted(kinds)))
    return kinds[optim.name](
        parameters,
        lr=optim.learning_rate,
        betas=(optim.beta1, optim.beta2),
        eps=optim.eps,
        weight_decay=optim.weight_decay,
    )


def pick_device(config: Config) -> torch.device:
    """The device of ``config.device``; "auto" takes a GPU if there is one.

    Raises:
        ValueError: If the device does not exist.
    """
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {config.device!r} cannot be used ({reason}); use auto, cpu or cuda") from error
    return device


def check_config(config: Config) -> None:
    """Refuse numbers that no run can have, before anything is loaded or written.

    Raises:
        ValueError: Naming the first such key.
    """
    for section, key, least in (
        ("training", "num_steps", 1),
        ("training", "batch_size", 1),
        ("training", "checkpoint_every", 1),
        ("training", "keep_checkpoints", 1),
        ("training", "log_every", 1),
        ("training", "sample_every", 0),
        ("training", "grad_clip", 0),
        ("optim", "warmup_steps", 0),
        ("sampling", "num_steps", 1),
        ("sampling", "num_samples", 1),
        ("sampling", "batch_size", 1),
        ("eval", "batch_size", 1),
        ("eval", "num_images", 0),
        ("eval", "vlb_num_steps", 0),
        ("eval", "vlb_samples_per_image", 0),
    ):
        value = config[section][key]
        if value < least:
            raise ValueError(f"config.{section}.{key} must be at least {least}, got {value}; raise it")
    if config.seed < 0:
        raise ValueError(f"config.seed must be at least 0, got {config.seed}; raise it")
    if not 0 <= config.training.ema_decay < 1:
        raise ValueError(f"config.training.ema_decay must lie in [0, 1), got {config.training.ema_decay}; try 0.9999")
    if config.optim.learning_rate <= 0:
        raise ValueError(f"config.optim.learning_rate must be above 0, got {config.optim.learning_rate}; try 2e-4")
