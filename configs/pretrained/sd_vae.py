"""Stable Diffusion's autoencoder, stabilityai/sd-vae-ft-mse on the hub, or any AutoencoderKL, on a folder of images."""

from ml_collections import ConfigDict

from configs.pretrained.family import autoencoder


def get_config() -> ConfigDict:
    """Images of 256x256, at which the autoencoder was trained; --checkpoint chooses another of these autoencoders."""
    return autoencoder("stabilityai/sd-vae-ft-mse", image_size=256)
