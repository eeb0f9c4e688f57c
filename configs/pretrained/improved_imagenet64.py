"""Nichol and Dhariwal 2021, ImageNet 64x64: imagenet64_uncond_100M_1500K and imagenet64_uncond_vlb_100M_1500K."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README; L_hybrid and L_vlb have one network."""
    flags = (
        "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True "
        "--diffusion_steps 4000 --noise_schedule cosine"
    )
    return openai("improved_diffusion", flags, image_size=64)
