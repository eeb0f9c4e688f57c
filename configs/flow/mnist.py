"""Rectified flow on MNIST, told as the other SDEs are: alpha = 1 - t, sigma = t."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.flow.family import flow_family
from configs.vp.mnist import mnist_network


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist.py, trained by flow matching."""
    config = get_default_config()
    mnist_network(config)
    flow_family(config, t_end=0.003)
    return config
