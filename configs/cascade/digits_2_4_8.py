"""Scikit-learn's digits in three stages, 2x2, 4x4 and 8x8: minutes each on a laptop's CPU."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """Stages of one SDE, so that the cascade can be truncated too."""
    config = get_default_config()
    config.cascade.update({"stages": ("vp/digits_2", "vp/digits_4_sr", "vp/digits_sr"), "noise_t": (0.1, 0.1)})
    return config
