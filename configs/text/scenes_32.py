"""Scenes of two digits of MNIST, 32x32, by their captions: one model, to be held against scenes_cascade.py."""

from ml_collections import ConfigDict

from configs.text import scenes


def get_config() -> ConfigDict:
    """The network of configs/text/scenes.py, and a level of 32x32 with half the channels before and after it."""
    config = scenes.get_config()
    config.data.options = "base=mnist"
    config.model.update({"channels": 16, "channel_mult": (1, 2, 4, 8)})
    return config
