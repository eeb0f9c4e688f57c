"""Improved DDPM on scikit-learn's digits: learned variances by L_hybrid, cosine table of 4000 steps."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp.digits import digits_network


def get_config() -> ConfigDict:
    """Nichol & Dhariwal 2021, Section 3, on the network of ``digits.py``.

    Their offset s = 0.008 suits 256 grey levels; s = 0.1 suits 17, with sigma = 0.01 at the first step.
    """
    config = get_default_config()
    config.sde.update({"name": "improved_ddpm", "num_steps": 4000, "s": 0.1})
    digits_network(config)
    config.model.learned_variance = True
    config.training.loss = "hybrid"
    config.eval.vlb_variance = "learned"
    return config
