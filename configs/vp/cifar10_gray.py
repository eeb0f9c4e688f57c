"""Colours for grey images: a network on CIFAR-10 that is told the luminance."""

from ml_collections import ConfigDict

from configs.vp import cifar10


def get_config() -> ConfigDict:
    """Ho et al.'s network, told an image of one channel (Saharia et al. 2022, Palette)."""
    config = cifar10.get_config()
    config.data.condition = ("gray",)
    return config
