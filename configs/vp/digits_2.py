"""Scikit-learn's digits as 2x2 images, the first stage of configs/cascade/digits_2_4_8.py."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py at one resolution and without attention: 3x3 kernels see the whole image."""
    config = digits.get_config()
    config.data.downscale = (2, 2)
    config.model.update({"channel_mult": (1,), "attention_resolutions": ()})
    config.training.update({"num_steps": 2_000, "checkpoint_every": 1_000, "sample_every": 1_000})
    return config
