"""MNIST in three stages, 7x7, 14x14 and 28x28."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """Stages of one SDE, so that the cascade can be truncated too."""
    config = get_default_config()
    config.cascade.update({"stages": ("vp/mnist_7", "vp/mnist_14_sr", "vp/mnist_sr"), "noise_t": (0.1, 0.1)})
    return config
