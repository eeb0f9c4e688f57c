"""DDPM on CIFAR-10 that is told the class, one in ten times not: for classifier-free guidance."""

from ml_collections import ConfigDict

from configs.vp import cifar10


def get_config() -> ConfigDict:
    """Ho et al.'s network with classes."""
    config = cifar10.get_config()
    config.model.update({"class_conditional": True, "condition_dropout": 0.1})
    return config
