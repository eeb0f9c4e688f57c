"""Nichol and Dhariwal 2021, ImageNet 64x64 with classes: imagenet64_cond_270M_250K."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README."""
    flags = (
        "--image_size 64 --num_channels 192 --num_res_blocks 3 --learn_sigma True --class_cond True "
        "--diffusion_steps 4000 --noise_schedule cosine --rescale_learned_sigmas False --rescale_timesteps False"
    )
    return openai("improved_diffusion", flags, image_size=64)
