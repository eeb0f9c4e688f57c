"""Scenes of MNIST as 16x16 images by their captions, the first stage of configs/text/scenes_cascade.py."""

from ml_collections import ConfigDict

from configs.text import scenes


def get_config() -> ConfigDict:
    """The network of configs/text/scenes.py, on the means of 2x2 boxes of the scenes of configs/text/scenes_32.py."""
    config = scenes.get_config()
    config.data.update({"options": "base=mnist", "downscale": (2,)})
    return config
