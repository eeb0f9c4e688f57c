"""Latents as published models of them see them: shifted and scaled by numbers that their project says."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

from data import ImageKind, LatentSpace

from ..workdir import read_config, source_of
from .first_stage import LoadedFirstStage


def latent_scaling(workdir: Path) -> tuple[float, float] | None:
    """Scale and shift of the latents of an imported autoencoder, which diffusion sees as (z - shift) scale.

    Args:
        workdir: Its work directory.

    Returns:
        Both; None of an autoencoder that was not imported.
    """
    source = source_of(read_config(workdir)) or {}
    if "latent_scale" not in source:
        return None
    return float(source["latent_scale"]), float(source["latent_shift"])


def with_published_latents(
    images: ImageKind, first: LoadedFirstStage, *, scale: float | None, checkpoint: str
) -> ImageKind:
    """Images as an imported model sees them, by the latents of an imported autoencoder.

    They are not standardized by a split, which the project's were not either: mean is the shift, and standard deviation
    1 / scale, in every channel.

    Args:
        images: The images.
        first: The autoencoder.
        scale: The scale that the model's own checkpoint says, if it does.
        checkpoint: The model's checkpoint, for the message.

    Raises:
        ValueError: In one line, if the autoencoder was not imported, or with another scale.
    """
    scaling = latent_scaling(first.workdir)
    if scaling is None:
        raise ValueError(
            f"data.first_stage={first.workdir} was not imported: checkpoint {checkpoint} knows another one; "
            "import its own, as configs/pretrained/ldm_celebahq_vq.py does"
        )
    theirs, shift = scaling
    if scale is not None and not math.isclose(scale, theirs, rel_tol=1e-4):
        raise ValueError(
            f"checkpoint {checkpoint} is of latents times {scale:g}, but data.first_stage={first.workdir} was imported "
            f"with {theirs:g}; import it from the same file, or with config.source.config='--scale_factor {scale:g}'"
        )
    shape = first.model.latent_shape
    space = LatentSpace(shape, (shift,) * shape[0], (1 / theirs,) * shape[0], images.num_levels, first.digest)
    return replace(images, latents=space)
