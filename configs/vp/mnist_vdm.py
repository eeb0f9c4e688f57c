"""Variational diffusion on MNIST for bits/dim: the bound in continuous time, with a learned noise schedule."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.mnist import mnist_network


def get_config() -> ConfigDict:
    """Kingma et al. 2021 on the network of ``mnist.py``, with Fourier features of its input."""
    config = get_default_config()
    config.sde = ConfigDict({"name": "vp_learned", "log_snr_max": 13.3, "log_snr_min": -5.0})
    mnist_network(config)
    config.model.update({"time_input": "log_snr", "input_frequencies": (7, 8)})
    config.training.update({"loss": "vlb_continuous", "step_sampling": "low_discrepancy"})
    config.eval.update({"likelihoods": ("vlb_continuous", "ode"), "vlb_steps_per_image": 20})
    return config
