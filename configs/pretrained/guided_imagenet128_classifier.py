"""Dhariwal and Nichol 2021, the classifier of noisy ImageNet 128x128: 128x128_classifier.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import guided_classifier


def get_config() -> ConfigDict:
    """The flags of the project's README."""
    flags = "--image_size 128 --diffusion_steps 1000 --noise_schedule linear"
    return guided_classifier(flags, image_size=128)
