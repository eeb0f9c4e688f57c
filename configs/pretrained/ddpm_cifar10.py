"""Ho et al. 2020, CIFAR-10, as converted by pytorch_diffusion: ema_diffusion_cifar10_model/model-790000.ckpt."""

from ml_collections import ConfigDict

from configs.pretrained.family import pretrained


def get_config() -> ConfigDict:
    """Ho et al.'s sampler and bound: on CIFAR-10 with the large variance."""
    config = pretrained("ddpm", "cifar10", cifar10=True)
    config.sampling.update({"sampler": "ancestral", "num_steps": 1000, "options": "variance=large"})
    config.eval.vlb_variance = "large"
    return config
