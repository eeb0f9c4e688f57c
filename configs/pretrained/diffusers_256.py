"""google/ddpm-celebahq-256, -bedroom-256, -cat-256, -church-256 and their ddpm-ema- on the Hugging Face hub."""

from ml_collections import ConfigDict

from configs.pretrained.family import pretrained


def get_config() -> ConfigDict:
    """Ho et al.'s sampler; --checkpoint chooses another of them."""
    config = pretrained("diffusers", image_size=256)
    config.source.checkpoint = "google/ddpm-celebahq-256"
    config.sampling.update({"sampler": "ancestral", "num_steps": 1000, "options": "variance=small"})
    return config
