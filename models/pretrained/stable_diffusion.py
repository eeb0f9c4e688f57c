"""Stable Diffusion 1 and 2 as one model: the U-Net of latents that is told a text, and the autoencoder of these."""

from __future__ import annotations

from pathlib import Path

import torch

from ..backbones import height_and_width
from ..latent import LatentDiffusion
from .autoencoder_kl.importer import from_autoencoder_kl
from .diffusers.files import find_folder
from .diffusers.importer import from_diffusers
from .shared.settings import Settings, read_json


def from_stable_diffusion(name: Path | str) -> LatentDiffusion:
    """Read the U-Net, the scheduler and the autoencoder of a pipeline of diffusers; its text encoder is read elsewhere.

    The prior is told ``Condition(tokens=...)``: of all the tokens to which a text is padded, without a mask, since
    these networks were trained so. "No text" is the tokens of an empty text.

    Args:
        name: The folder of ``model_index.json``, with ``unet``, ``scheduler`` and ``vae``; or its name on the hub. See
            ``from_diffusers`` and ``from_autoencoder_kl``.

    Returns:
        The model, in evaluation mode: its prior, a ``PlannedModel``, of latents (z - shift) scale, by the numbers of
        the autoencoder's settings; and its first stage, a ``PlannedFirstStage`` of images of the prior's size times
        what the levels halve. The ``notes`` of both say what was chosen.

    Raises:
        ValueError: In one line: a part is missing, cannot be read, or is of another kind; or both are of other latents.

    Source: Rombach et al. 2022.

    Example:
        >>> model = from_stable_diffusion("stable-diffusion-v1-5/stable-diffusion-v1-5")
        >>> z = sampler.sample(model.prior, x_T, cond=Condition(tokens=tokens)).x0
        >>> images = model.first_stage.decode(model.restore(z)).mean
    """
    folder = find_folder(name)
    if not (folder / "vae").is_dir():
        raise ValueError(f"{folder} must have an autoencoder in vae/, got none; read the unet alone by from_diffusers")
    prior = from_diffusers(folder)
    settings = Settings(read_json(folder / "vae" / "config.json", "AutoencoderKL's config"))
    factor = 2 ** (len(settings.integers("block_out_channels", (64,))) - 1)
    channels, (height, width) = prior.plan.network["in_channels"], height_and_width(prior.plan.network["image_size"])
    first_stage = from_autoencoder_kl(folder, image_size=(factor * height, factor * width))
    if first_stage.latent_shape != (channels, height, width):
        theirs, ours = ("x".join(map(str, shape)) for shape in (first_stage.latent_shape, (channels, height, width)))
        raise ValueError(f"the unet of {folder} is of latents of {ours}, but its vae has {theirs}; fetch both again")
    mean = torch.full((channels,), first_stage.latent_shift)
    return LatentDiffusion(
        first_stage, prior, mean=mean, std=torch.full((channels,), 1 / first_stage.latent_scale)
    ).eval()
