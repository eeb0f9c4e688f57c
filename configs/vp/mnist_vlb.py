"""Improved DDPM on MNIST for bits/dim: L_vlb with importance-sampled steps, learned variances, cosine table of 4000."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.mnist import mnist_network


def get_config() -> ConfigDict:
    """Nichol & Dhariwal 2021, Sections 3.1 to 3.3, on the network of ``mnist.py``."""
    config = get_default_config()
    config.sde.update({"name": "improved_ddpm", "num_steps": 4000})
    mnist_network(config)
    config.model.learned_variance = True
    config.training.update({"loss": "vlb", "step_sampling": "importance"})
    return config
