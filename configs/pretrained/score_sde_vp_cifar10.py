"""Song et al. 2021, CIFAR-10, continuous VP: vp/cifar10_{ddpmpp,ncsnpp}{,_deep}_continuous, vp/ddpm/..."""

from ml_collections import ConfigDict

from configs.pretrained.family import score_sde


def get_config() -> ConfigDict:
    """The predictor of the project's config; source.config chooses another of these networks."""
    config = score_sde("vp/cifar10_ddpmpp_continuous", cifar10=True)
    config.sampling.update({"sampler": "euler_maruyama", "num_steps": 1000})
    return config
