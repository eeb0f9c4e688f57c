"""The sub-VP SDE on CIFAR-10, in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.cifar10 import cifar10_network


def get_config() -> ConfigDict:
    """Linear beta from 0.1 to 20 (Song et al. 2021, Appendix C)."""
    config = get_default_config()
    config.sde.update({"name": "subvp", "beta_min": 0.1, "beta_max": 20.0})
    cifar10_network(config)
    return config
