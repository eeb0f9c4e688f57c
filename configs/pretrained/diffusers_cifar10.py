"""google/ddpm-cifar10-32 on the Hugging Face hub, or any pipeline of a UNet2DModel of CIFAR-10."""

from ml_collections import ConfigDict

from configs.pretrained.family import pretrained


def get_config() -> ConfigDict:
    """Ho et al.'s sampler and bound: on CIFAR-10 with the large variance."""
    config = pretrained("diffusers", cifar10=True)
    config.source.checkpoint = "google/ddpm-cifar10-32"
    config.sampling.update({"sampler": "ancestral", "num_steps": 1000, "options": "variance=large"})
    config.eval.vlb_variance = "large"
    return config
