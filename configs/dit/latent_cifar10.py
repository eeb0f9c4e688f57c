"""A diffusion transformer on the latents of configs/latent/cifar10_autoencoder.py, which is to be trained before."""

from ml_collections import ConfigDict

from configs.dit.family import dit_network
from configs.latent import cifar10


def get_config() -> ConfigDict:
    """8x8 patches of one latent each, beside the U-Net of configs/latent/cifar10.py.

    A step takes 0.92 of the operations of the U-Net's, whose 200,000 steps are 216,000 here.
    """
    config = cifar10.get_config()
    dit_network(config, patch_size=1, channels=192, depth=12, num_heads=3)
    config.training.num_steps = 216_000
    return config
