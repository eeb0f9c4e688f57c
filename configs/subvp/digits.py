"""The sub-VP SDE on digits, in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """Linear beta from 0.1 to 20 (Song et al. 2021, Appendix C)."""
    config = get_default_config()
    config.sde.update({"name": "subvp", "beta_min": 0.1, "beta_max": 20.0})
    digits_network(config)
    return config
