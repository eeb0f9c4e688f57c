"""google/ncsnpp-ffhq-1024 on the Hugging Face hub: NCSN++ of the VE-SDE."""

from ml_collections import ConfigDict

from configs.pretrained.family import predictor_corrector, pretrained


def get_config() -> ConfigDict:
    """The sampler of its scheduler."""
    config = pretrained("diffusers", image_size=1024)
    config.source.checkpoint = "google/ncsnpp-ffhq-1024"
    config.sampling.update({"clip_x0": False, "num_samples": 4, "batch_size": 1})
    predictor_corrector(config, num_steps=2000, snr=0.15)
    return config
