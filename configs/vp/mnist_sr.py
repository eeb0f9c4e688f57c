"""Super-resolution of MNIST, 14x14 to 28x28: a network that is told the means of 2x2 boxes."""

from ml_collections import ConfigDict

from configs.vp import mnist


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist.py, told the small image with noise on it, as in configs/vp/digits_sr.py."""
    config = mnist.get_config()
    config.data.update({"condition": ("lowres",), "condition_options": "factor=2"})
    config.model.update({"parameterization": "v", "condition_noise_t": 0.1})
    config.training.weighting = "v"
    return config
