"""Rombach et al. 2022, CelebA-HQ 256x256, as CompVis/ldm-celebahq-256 on the hub; see ldm_celebahq_vq.py."""

from ml_collections import ConfigDict

from configs.pretrained.family import latent_diffusion


def get_config() -> ConfigDict:
    """Its U-Net, of the latents of the autoencoder in the same pipeline."""
    config = latent_diffusion("diffusers", first_stage="ldm_celebahq_vq", image_size=256)
    config.source.checkpoint = "CompVis/ldm-celebahq-256"
    return config
