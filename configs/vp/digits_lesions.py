"""DDPM on digits with and without lesions, told which, one in ten times not: for counterfactual maps."""

from ml_collections import ConfigDict

from configs.vp import digits_class


def get_config() -> ConfigDict:
    """The network of configs/vp/digits_class.py, whose two classes are healthy and lesion."""
    config = digits_class.get_config()
    config.data.update({"dataset": "lesions", "options": "base=digits"})
    config.training.num_steps = 6_000
    return config
