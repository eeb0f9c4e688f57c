"""DDPM on MNIST that is told the class, one in ten times not: for classifier-free guidance."""

from ml_collections import ConfigDict

from configs.vp import mnist


def get_config() -> ConfigDict:
    """The network of configs/vp/mnist.py with classes, in larger batches: what a class changes is small."""
    config = mnist.get_config()
    config.model.update({"class_conditional": True, "condition_dropout": 0.1})
    config.training.batch_size = 128
    config.eval.classify_told_above_t = 0.05
    return config
