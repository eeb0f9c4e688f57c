"""The VE-SDE on MNIST, in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.ve.family import ve_family
from configs.vp.mnist import mnist_network


def get_config() -> ConfigDict:
    """sigma from 0.01 to 30.0."""
    config = get_default_config()
    ve_family(config, sigma_min=0.01, sigma_max=30.0)
    mnist_network(config)
    return config
