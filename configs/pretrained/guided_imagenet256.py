"""Dhariwal and Nichol 2021, ImageNet 256x256 with classes: 256x256_diffusion.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README, without guidance by its classifier."""
    flags = (
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
        "--use_scale_shift_norm True --use_fp16 True --class_cond True --image_size 256 "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2"
    )
    return openai("guided_diffusion", flags, image_size=256)
