"""Stable Diffusion's autoencoder, stabilityai/sd-vae-ft-mse on the hub, or any AutoencoderKL, on CIFAR-10."""

from ml_collections import ConfigDict

from configs.pretrained.family import autoencoder


def get_config() -> ConfigDict:
    """Images of 32x32, which become latents of 4x4; --checkpoint chooses another of these autoencoders."""
    return autoencoder("stabilityai/sd-vae-ft-mse", cifar10=True)
