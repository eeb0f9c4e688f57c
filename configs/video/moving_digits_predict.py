"""The last 6 of 8 frames of a digit that moves between walls, given the first 2."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.video.family import moving_digits


def get_config() -> ConfigDict:
    """The network of configs/video/moving_digits.py; one clip in seven is learned without the frames before it.

    So the same weights say how many bits the given frames save: docs/video.md.
    """
    config = get_default_config()
    moving_digits(config)
    config.data.update({"given_frames": 2, "condition": ("paired",)})
    config.model.condition_dropout = 0.15
    return config
