"""Ho et al. 2020, LSUN 256x256, as converted by pytorch_diffusion; lsun_bedroom, lsun_cat or lsun_church."""

from ml_collections import ConfigDict

from configs.pretrained.family import pretrained


def get_config() -> ConfigDict:
    """Ho et al.'s sampler; the three networks are alike."""
    config = pretrained("ddpm", "lsun_bedroom", image_size=256)
    config.sampling.update({"sampler": "ancestral", "num_steps": 1000, "options": "variance=small"})
    return config
