"""Dhariwal and Nichol 2021, ImageNet 64x64 with classes: 64x64_diffusion.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README, without guidance by its classifier."""
    flags = (
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
        "--use_scale_shift_norm True --use_fp16 True --class_cond True --dropout 0.1 --image_size 64 "
        "--noise_schedule cosine --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--use_new_attention_order True"
    )
    return openai("guided_diffusion", flags, image_size=64)
