"""Peebles and Xie 2023, ImageNet 512x512: DiT-XL-2-512x512.pt, of the latents of stable_diffusion_vae.py."""

from ml_collections import ConfigDict

from configs.pretrained.family import dit


def get_config() -> ConfigDict:
    """The network as it was trained; --source diffusers_dit reads the folder of diffusers."""
    return dit(image_size=512, first_stage="stable_diffusion_vae")
