"""Improved DDPM on scikit-learn's digits: learned variances by L_hybrid, a cosine table of 500 steps."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """Nichol & Dhariwal 2021, Section 3, on the network of ``digits.py``.

    Their 4000 steps from s = 0.008 suit 256 grey levels. These are 17, 0.125 apart: 500 steps from s = 0.2 begin at
    sigma = 0.037. 4000 from s = 0.1, sigma = 0.01, made the bound 1 bit/dim worse after as many training steps.
    """
    config = get_default_config()
    config.sde.update({"name": "improved_ddpm", "num_steps": 500, "s": 0.2})
    digits_network(config)
    config.model.learned_variance = True
    config.training.loss = "hybrid"
    return config
