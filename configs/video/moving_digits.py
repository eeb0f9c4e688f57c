"""Clips of 8 frames of a digit that moves between walls, 16x16, by a space-time transformer."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.video.family import moving_digits


def get_config() -> ConfigDict:
    """All 8 frames at once."""
    config = get_default_config()
    moving_digits(config)
    return config
