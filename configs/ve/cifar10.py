"""The VE-SDE on CIFAR-10, in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.ve.family import ve_family
from configs.vp.cifar10 import cifar10_network


def get_config() -> ConfigDict:
    """sigma from 0.02 to 100.0. Song et al. 2021 use 0.01 to 50 on data in [0, 1]; ours is in [-1, 1].

    Network and training are those of ``vp/cifar10.py``, EMA of 0.9999 included; Song et al. take 0.999 for VE (H.1).
    """
    config = get_default_config()
    ve_family(config, sigma_min=0.02, sigma_max=100.0)
    cifar10_network(config)
    return config
