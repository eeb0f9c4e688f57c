"""DDPM on scikit-learn's digits that is told the class, one in ten times not: for classifier-free guidance."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py with classes, trained longer."""
    config = digits.get_config()
    config.model.update({"class_conditional": True, "condition_dropout": 0.1})
    config.training.update({"num_steps": 3_000, "checkpoint_every": 1_000, "sample_every": 1_000})
    return config
