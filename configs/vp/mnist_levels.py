"""MNIST for bits/dim in little time: each pixel's grey level as a distribution, and the bound in continuous time."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.mnist import mnist_network


def get_config() -> ConfigDict:
    """The objective of ``mnist_vdm.py``, whose network need not learn what a pixel's noisy value says of its level."""
    config = get_default_config()
    config.sde = ConfigDict({"name": "vp_learned", "log_snr_max": 13.3, "log_snr_min": -5.0})
    mnist_network(config)
    config.model.update({"parameterization": "levels", "time_input": "log_snr"})
    config.training.update({"loss": "vlb_continuous", "step_sampling": "low_discrepancy", "num_steps": 8_000})
    config.optim.decay_steps = 8_000
    config.eval.update({"likelihoods": ("vlb_continuous", "ode"), "vlb_steps_per_image": 20})
    return config
