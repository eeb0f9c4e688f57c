"""Super-resolution of scikit-learn's digits, 2x2 to 4x4, the second stage of configs/cascade/digits_2_4_8.py."""

from ml_collections import ConfigDict

from configs.vp import digits_sr


def get_config() -> ConfigDict:
    """The network of configs/vp/digits_sr.py for images of half the size."""
    config = digits_sr.get_config()
    config.data.downscale = (2,)
    config.model.attention_resolutions = (2,)
    config.training.update({"num_steps": 2_000})
    return config
