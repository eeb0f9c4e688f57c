"""Song et al. 2021, CIFAR-10, continuous sub-VP: subvp/cifar10_{ddpmpp,ncsnpp}{,_deep}_continuous by source.config."""

from ml_collections import ConfigDict

from configs.pretrained.family import score_sde


def get_config() -> ConfigDict:
    """The predictor of the project's config; source.config chooses another of these networks."""
    config = score_sde("subvp/cifar10_ddpmpp_continuous", cifar10=True)
    config.sampling.update({"sampler": "euler_maruyama", "num_steps": 1000})
    return config
