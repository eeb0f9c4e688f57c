"""Segmentation of lesions on scikit-learn's digits: a network that draws the mask and is told the image."""

from ml_collections import ConfigDict

from configs.vp import digits


def get_config() -> ConfigDict:
    """The network of configs/vp/digits.py at half its width, on masks of two levels beside their image.

    It says how probable each pixel is, and trains on the bound itself: that weighs the noisy x_t, where the image
    alone tells the mask, by the bits that they hold. Two levels lie 2 apart: at a log-SNR of 6 they are certain.
    """
    config = digits.get_config()
    segment(config)
    config.model.update({"channels": 24, "dropout": 0.0})
    config.training.update({"num_steps": 2_000, "checkpoint_every": 500, "sample_every": 1_000})
    return config


def segment(config: ConfigDict) -> None:
    """Masks, objective and sampler, which MNIST shares."""
    config.data.update({"dataset": "lesion_masks", "condition": ("paired",)})
    config.sde = ConfigDict({"name": "vp_learned", "log_snr_max": 6.0, "log_snr_min": -9.0})
    config.model.update({"parameterization": "levels", "time_input": "log_snr"})
    config.training.update({"loss": "vlb_continuous", "step_sampling": "low_discrepancy"})
    config.sampling.num_steps = 50
    config.eval.likelihoods = ("vlb",)
