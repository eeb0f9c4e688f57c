"""An autoencoder of the frames of moving digits, each by itself: 16x16, latents of 8x8x4 numbers."""

from ml_collections import ConfigDict

from configs.latent import digits_autoencoder


def get_config() -> ConfigDict:
    """The network of configs/latent/digits_autoencoder.py; its likelihood is of whole clips."""
    config = digits_autoencoder.get_config()
    config.data.dataset = "moving_digits"
    config.training.batch_size = 8
    config.eval.update({"batch_size": 50, "num_images": 500})
    return config
