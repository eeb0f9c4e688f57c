"""VQ-f4, the autoencoder of latent-diffusion's CelebA-HQ, FFHQ and LSUN bedrooms, on a folder of images."""

from ml_collections import ConfigDict

from configs.pretrained.family import autoencoder


def get_config() -> ConfigDict:
    """Images of 256x256, which become latents of 3x64x64; --checkpoint chooses another with a codebook."""
    return autoencoder("CompVis/ldm-celebahq-256", source="autoencoder_vq", image_size=256)
