"""Settings of diffusers' ``VQModel``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...backbones import ImageSize
from ..autoencoder_kl.settings import PlannedAutoencoder, planned_autoencoder, read_levels
from ..shared.settings import Settings


def plan_vq_model(config: Mapping[str, Any], *, image_size: ImageSize | None = None) -> PlannedAutoencoder:
    """Plan an autoencoder from the settings of diffusers' ``VQModel``.

    Args:
        config: What ``config.json`` holds; settings that are left out have the defaults of ``VQModel``, but for the
            scale of the latents. That is 1 then, as in latent-diffusion: files that do not say it are older than the
            default, 0.18215, which is Stable Diffusion's.
        image_size: Size of the images; None is ``sample_size``.

    Raises:
        ValueError: In one line: a setting is unknown, impossible, or of a network that is not supported.
    """
    settings = Settings({name: value for name, value in config.items() if not name.startswith("_")})
    widths, groups, network = read_levels(settings, "VQModel", latent_channels=3, image_size=image_size)
    channels = network["latent_channels"]
    settings.refuse_unless(norm_type="group", vq_embed_dim=(None, channels), lookup_from_codebook=False)
    settings.ignore(["force_upcast"])
    size = settings.integer("num_vq_embeddings", 256, least=1)
    scale = settings.number("scaling_factor", 1.0)
    settings.finish()
    options = {**network, "latent_convs": True, "bottleneck": "vq", "codebook_size": size}
    return planned_autoencoder(widths, groups, options, scale, 0.0, ())
