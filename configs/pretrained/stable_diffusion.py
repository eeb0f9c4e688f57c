"""Stable Diffusion 1.5, from the folder of its pipeline; see stable_diffusion_vae.py, which is imported before."""

from ml_collections import ConfigDict

from configs.pretrained.family import stable_diffusion


def get_config() -> ConfigDict:
    """Images of 512x512; --checkpoint and data.text_encoder name another folder, and 2.1 wants data.image_size=768."""
    return stable_diffusion(image_size=512)
