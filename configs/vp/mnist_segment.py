"""Segmentation of lesions on MNIST: a network that draws the mask and is told the image."""

from ml_collections import ConfigDict

from configs.vp import mnist
from configs.vp.digits_segment import segment


def get_config() -> ConfigDict:
    """The objective of configs/vp/digits_segment.py, for configs/vp/mnist.py's network at half its width."""
    config = mnist.get_config()
    segment(config)
    config.data.options = "base=mnist"
    config.model.update({"channels": 16, "attention_resolutions": ()})
    config.training.update({"num_steps": 500, "checkpoint_every": 250})
    return config
