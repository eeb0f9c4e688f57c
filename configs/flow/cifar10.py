"""Rectified flow on CIFAR-10, told as the other SDEs are: alpha = 1 - t, sigma = t."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.flow.family import flow_family
from configs.vp.cifar10 import cifar10_network


def get_config() -> ConfigDict:
    """The network of configs/vp/cifar10.py, trained by flow matching."""
    config = get_default_config()
    cifar10_network(config)
    flow_family(config, t_end=0.003)
    return config
