"""google/ncsnpp-celebahq-256, -ffhq-256, -church-256 and -bedroom-256 on the Hugging Face hub: NCSN++ of the VE-SDE."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, pretrained


def get_config() -> ConfigDict:
    """The sampler of its scheduler, whose snr of 0.075 is also that of Song et al.'s configs at 256x256."""
    config = pretrained("diffusers", image_size=256)
    config.source.checkpoint = "google/ncsnpp-celebahq-256"
    config.sampling.clip_x0 = False
    predictor_corrector(config, num_steps=2000, snr=0.075)
    return config
