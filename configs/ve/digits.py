"""The VE-SDE on digits, in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.ve.family import ve_family
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """sigma from 0.01 to 10.0."""
    config = get_default_config()
    ve_family(config, sigma_min=0.01, sigma_max=10.0)
    digits_network(config)
    return config
