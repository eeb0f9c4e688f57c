"""Song et al. 2021, CIFAR-10, VP of 1000 steps: vp/cifar10_ddpmpp, vp/cifar10_ncsnpp, vp/ddpm/cifar10."""

from ml_collections import ConfigDict

from configs.pretrained.family import score_sde


def get_config() -> ConfigDict:
    """The ancestral predictor of the project, whose variance is the large one."""
    config = score_sde("vp/cifar10_ddpmpp", cifar10=True)
    config.sampling.update({"sampler": "ancestral", "num_steps": 1000, "options": "variance=large"})
    config.eval.vlb_variance = "large"
    return config
