"""Clips as latents of their frames, of configs/video/moving_digits_autoencoder.py, which is to be trained before."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.video.family import moving_digits


def get_config() -> ConfigDict:
    """The network of configs/video/moving_digits.py on 8x8x4 latents, trained on their likelihood."""
    config = get_default_config()
    moving_digits(config)
    config.sde = ConfigDict({"name": "vp"})
    config.data.first_stage = "runs/video/moving_digits_autoencoder"
    config.model.update({"parameterization": "v", "time_input": "log_snr"})
    config.sampling.update({"sampler": "ddim"})
    config.eval.update({"likelihoods": ("vlb_continuous",), "vlb_step_sampling": "low_discrepancy"})
    return config
