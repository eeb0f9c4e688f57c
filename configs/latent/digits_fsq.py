"""Diffusion of the codes of configs/latent/digits_fsq_autoencoder.py, which is to be trained before."""

from ml_collections import ConfigDict

from configs.latent import digits


def get_config() -> ConfigDict:
    """The network of configs/latent/digits.py, whose answer is the probability of each level, trained on its bound."""
    config = digits.get_config()
    config.data.first_stage = "runs/latent/digits_fsq_autoencoder"
    config.model.parameterization = "levels"
    config.training.loss = "vlb_continuous"
    config.eval.ode_dequantization = "decoder"
    return config
