"""Song et al. 2021, VE at 256x256: ve/{bedroom,church,celebahq_256,ffhq_256}_ncsnpp_continuous by source.config."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, score_sde


def get_config() -> ConfigDict:
    """The predictor and the corrector of the project's config."""
    config = score_sde("ve/bedroom_ncsnpp_continuous", image_size=256)
    predictor_corrector(config, num_steps=2000, snr=0.075)
    return config
