"""An autoencoder of scikit-learn's digits whose latents are codes: 4x4x2 numbers of 5 levels each."""

from ml_collections import ConfigDict

from configs.latent import digits_autoencoder


def get_config() -> ConfigDict:
    """The network of configs/latent/digits_autoencoder.py with a lattice for its noise."""
    config = digits_autoencoder.get_config()
    config.model.network = {"latent_channels": 2, "bottleneck": "fsq", "latent_levels": 5, "pixels": "levels"}
    return config
