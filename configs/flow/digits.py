"""Rectified flow on scikit-learn's digits, told as the other SDEs are: alpha = 1 - t, sigma = t."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.flow.family import flow_family
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py, trained by flow matching."""
    config = get_default_config()
    digits_network(config)
    flow_family(config, t_end=0.03)
    config.eval.update({"ode_rtol": 1e-4, "ode_atol": 1e-4})
    return config
