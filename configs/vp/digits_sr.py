"""Super-resolution of scikit-learn's digits, 4x4 to 8x8: a network that is told the means of 2x2 boxes."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py, told the small image with noise on it (Ho et al. 2021, CDM).

    It predicts v, and the error of v has weight 1: where x_t is almost noise, all that is known of x0 is the small
    image, and there an error of x0 has next to no weight in L_simple. The noise on the small image ends at t = 0.1,
    where sigma / alpha is 0.58.
    """
    config = digits.get_config()
    config.data.update({"condition": ("lowres",), "condition_options": "factor=2"})
    config.model.update({"parameterization": "v", "condition_noise_t": 0.1})
    config.training.update({"weighting": "v", "num_steps": 3_000, "checkpoint_every": 1_000, "sample_every": 1_000})
    return config
