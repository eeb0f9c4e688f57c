"""An autoencoder that is trained together with the diffusion of its latents, as a part of one model."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, TypeVar

import torch

from data import AnyKind, ImageKind, LatentSpace, one_or_pair
from models import Autoencoder, FirstStage, NetworkModel, is_own_state
from models.pretrained import default_options
from runtime.registry import choices_message
from sde_lib import SDE, VP

from ..config import Config
from .first_stage import FirstStageCodec

_OF_DATA = ("image_size", "in_channels", "num_levels")

Kind = TypeVar("Kind", bound=AnyKind)


def build_own_first_stage(config: Config, kind: AnyKind, sde: SDE) -> FirstStage | None:
    """The autoencoder of ``config.model.first_stage``, with new weights; None where that is empty.

    Args:
        config: The config; the section holds options of ``Autoencoder``.
        kind: The images.
        sde: The SDE of the diffusion.

    Raises:
        ValueError: If an option is unknown or impossible, or the data have no pixels.
    """
    given = config.model.get("first_stage")
    if not given:
        return None
    if not isinstance(kind, ImageKind):
        raise ValueError("model.first_stage is of images, got vectors; leave it out")
    known = [name for name in default_options("autoencoder") if name not in _OF_DATA]
    for key in given:
        if key not in known:
            raise ValueError(choices_message("key of config.model.first_stage:", key, known))
    options: dict[str, Any] = {
        key: tuple(value) if isinstance(value, (list, tuple)) else value for key, value in given.items()
    }
    if options.get("bottleneck") in ("fsq", "vq"):
        raise ValueError(
            f"model.first_stage.bottleneck={options['bottleneck']} makes codes, through which a diffusion trains no "
            "encoder; set fixed or diagonal, or train the two in turn, as configs/latent/digits_fsq.py does"
        )
    size, channels = one_or_pair(*kind.image_shape[-2:]), kind.image_shape[0]
    network = Autoencoder(image_size=size, in_channels=channels, num_levels=kind.num_levels, **options)
    return FirstStage(network, sde, num_frames=kind.num_frames)


def as_its_latents(config: Config, kind: Kind) -> Kind:
    """The kind of the data as the diffusion of a jointly trained autoencoder sees it; any other kind as it is.

    Its latents are not standardized: the encoder learns how large they are.
    """
    if not config.model.get("first_stage") or not isinstance(kind, ImageKind):
        return kind
    with torch.device("meta"):
        # an SDE plays no part in the shape
        first_stage = build_own_first_stage(config, kind, VP())
    assert first_stage is not None
    channels = first_stage.latent_shape[0]
    space = LatentSpace(first_stage.latent_shape, (0.0,) * channels, (1.0,) * channels, kind.num_levels, "")
    return replace(kind, latents=space)


def decode_by_own(kind: AnyKind, model: NetworkModel) -> None:
    """Let a jointly trained model's own autoencoder turn the latents of the kind into pixels; others have none."""
    first_stage = getattr(model, "first_stage", None)
    if first_stage is not None and isinstance(kind, ImageKind) and kind.latents is not None:
        kind.latents.use(FirstStageCodec(first_stage))


def own_noise_warning(model: NetworkModel) -> str | None:
    """A line for a training whose SDE begins with another noise than the fixed one of its own autoencoder."""
    first_stage = getattr(model, "first_stage", None)
    if first_stage is None or first_stage.log_snr is None or is_own_state(first_stage, model.sde):
        return None
    std = math.exp(-0.5 * first_stage.log_snr)
    return (
        f"warning: the SDE begins with another noise than that of the latents, {std:.6g}: the rate has a term of its "
        "own, and the decoder sees other noise in samples; set sde.sigma_min of sde.name=ve to it"
    )
