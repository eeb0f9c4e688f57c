"""google/ncsnpp-ffhq-1024 on the Hugging Face hub: NCSN++ of the VE-SDE."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, pretrained


def get_config() -> ConfigDict:
    """The sampler of its scheduler."""
    config = pretrained("diffusers", image_size=1024)
    config.source.checkpoint = "google/ncsnpp-ffhq-1024"
    config.sampling.clip_x0 = False
    predictor_corrector(config, num_steps=2000, snr=0.15)
    config.sampling.update({"num_samples": 4, "batch_size": 1})
    return config
