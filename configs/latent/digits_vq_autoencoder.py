"""An autoencoder of scikit-learn's digits whose latents are codes: at 4x4 places one of 64 vectors each."""

from ml_collections import ConfigDict

from configs.latent import digits_autoencoder


def get_config() -> ConfigDict:
    """The network of configs/latent/digits_autoencoder.py with a codebook for its noise."""
    config = digits_autoencoder.get_config()
    config.model.network = {"latent_channels": 4, "bottleneck": "vq", "codebook_size": 64, "pixels": "levels"}
    return config
