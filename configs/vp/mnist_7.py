"""MNIST as 7x7 images, the first stage of configs/cascade/mnist_7_14_28.py."""

from ml_collections import ConfigDict

from configs.vp import mnist


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist.py at one resolution."""
    config = mnist.get_config()
    config.data.downscale = (2, 2)
    config.model.channel_mult = (2,)
    return config
