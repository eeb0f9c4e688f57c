"""Imagen's cascade on scenes of MNIST: 16x16 by their captions, then 32x32 by the caption and the small image."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """Stages of one SDE, so that the cascade can be truncated too."""
    config = get_default_config()
    config.cascade.update({"stages": ("text/scenes_16", "text/scenes_sr"), "noise_t": (0.2,)})
    return config
