"""The autoencoder of stable_diffusion.py, from the folder of its pipeline."""

from ml_collections import ConfigDict

from configs.pretrained.family import autoencoder


def get_config() -> ConfigDict:
    """Images of 512x512; of 2.1 set data.image_size=768."""
    return autoencoder("stable-diffusion-v1-5", image_size=512)
