"""Peebles and Xie 2023, ImageNet 256x256: DiT-XL-2-256x256.pt, of the latents of sd_vae.py."""

from ml_collections import ConfigDict

from configs.pretrained.family import dit


def get_config() -> ConfigDict:
    """The network as it was trained; --source diffusers_dit reads the folder of diffusers."""
    return dit(image_size=256, first_stage="sd_vae")
