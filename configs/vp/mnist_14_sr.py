"""Super-resolution of MNIST, 7x7 to 14x14, the second stage of configs/cascade/mnist_7_14_28.py."""

from ml_collections import ConfigDict

from configs.vp import mnist_sr


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist_sr.py for images of half the size."""
    config = mnist_sr.get_config()
    config.data.downscale = (2,)
    config.model.channel_mult = (1, 2)
    return config
