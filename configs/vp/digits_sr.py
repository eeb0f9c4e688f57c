"""Super-resolution of scikit-learn's digits, 4x4 to 8x8: a network that is told the means of 2x2 boxes."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py, told the small image with noise on it (Ho et al. 2021, CDM).

    The noise ends at t = 0.1, sigma / alpha = 0.58: small images with more teach a network little. It predicts v: an
    error of eps is sigma / alpha times as large in x0, 245 times at t = 1, where the small image matters most.
    """
    config = digits.get_config()
    config.data.update({"condition": ("lowres",), "condition_options": "factor=2"})
    config.model.update({"parameterization": "v", "condition_noise_t": 0.1})
    config.training.update({"num_steps": 3_000, "checkpoint_every": 1_000, "sample_every": 1_000})
    return config
