"""DDPM on MNIST with and without lesions, told which, one in ten times not: for counterfactual maps."""

from ml_collections import ConfigDict

from configs.vp import mnist_class


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist_class.py, whose two classes are healthy and lesion."""
    config = mnist_class.get_config()
    config.data.update({"dataset": "lesions", "options": "base=mnist"})
    config.eval.classify_told_above_t = 0.0
    return config
