"""Nichol and Dhariwal 2021, CIFAR-10: cifar10_uncond_50M_500K and cifar10_uncond_vlb_50M_500K."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README; L_hybrid and L_vlb have one network."""
    flags = (
        "--image_size 32 --num_channels 128 --num_res_blocks 3 --learn_sigma True --dropout 0.3 "
        "--diffusion_steps 4000 --noise_schedule cosine"
    )
    return openai("improved_diffusion", flags, cifar10=True)
