"""EDM, ImageNet 64x64 with classes: edm-imagenet-64x64-cond-adm."""

from ml_collections import ConfigDict

from configs.pretrained.family import edm


def get_config() -> ConfigDict:
    """Karras et al. 2022: 256 steps with churn, 511 network calls."""
    flags = "--model_type DhariwalUNet --img_resolution 64 --label_dim 1000"
    config = edm(flags, num_steps=256, image_size=64)
    # their churn is divided by 256 steps, ours by 255
    config.sampling.options = f"churn={40 * 255 / 256}, churn_min=0.05, churn_max=50, noise_std=1.003"
    return config
