"""Segmentation of lesions on MNIST: a network that draws the mask and is told the image."""

from ml_collections import ConfigDict

from configs.vp import mnist
from configs.vp.digits_segment import segment


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist.py, told the image, with the objective of configs/vp/digits_segment.py."""
    config = mnist.get_config()
    segment(config)
    config.data.options = "base=mnist"
    config.model.attention_resolutions = ()
    config.training.num_steps = 4_000
    return config
