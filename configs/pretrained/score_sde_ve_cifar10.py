"""Song et al. 2021, CIFAR-10, VE: ve/cifar10_ncsnpp{,_deep}_continuous and ve/cifar10_ncsnpp by source.config."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, score_sde


def get_config() -> ConfigDict:
    """The predictor and the corrector of the project's config."""
    config = score_sde("ve/cifar10_ncsnpp_continuous", cifar10=True)
    predictor_corrector(config, num_steps=1000, snr=0.16)
    return config
