"""Song et al. 2021, VE at 1024x1024: ve/{ffhq,celebahq}_ncsnpp_continuous by source.config."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, score_sde


def get_config() -> ConfigDict:
    """The predictor and the corrector of the project's config."""
    config = score_sde("ve/ffhq_ncsnpp_continuous", image_size=1024)
    config.sampling.update({"num_samples": 4, "batch_size": 1})
    predictor_corrector(config, num_steps=2000, snr=0.15)
    return config
