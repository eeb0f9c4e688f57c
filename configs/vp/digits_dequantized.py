"""Digits by the continuous VP-SDE: likelihood weighting and learned dequantization, for the exact likelihood."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """Song et al. 2021b on the network of ``digits.py``: likelihood weighting, times uniform in log-SNR.

    The chain's bound is not among the numbers: its decoder is of the levels, and this network knows the density around
    them.
    """
    config = get_default_config()
    config.sde = ConfigDict({"name": "vp", "beta_min": 0.1, "beta_max": 20.0})
    digits_network(config)
    config.model.dequantizer = True
    config.training.update({"loss": "dequantized", "step_sampling": "importance"})
    config.eval.update({"likelihoods": ("ode",), "ode_dequantization": "variational"})
    config.eval.update({"ode_rtol": 1e-4, "ode_atol": 1e-4})
    return config
