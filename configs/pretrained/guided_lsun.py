"""Dhariwal and Nichol 2021, LSUN 256x256: lsun_bedroom.pt, lsun_cat.pt and lsun_horse.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README, with the 1000 steps that it recommends for these."""
    flags = (
        "--attention_resolutions 32,16,8 --diffusion_steps 1000 --learn_sigma True --resblock_updown True "
        "--use_scale_shift_norm True --use_fp16 True --class_cond False --dropout 0.1 --image_size 256 "
        "--noise_schedule linear --num_channels 256 --num_head_channels 64 --num_res_blocks 2"
    )
    config = openai("guided_diffusion", flags, image_size=256)
    config.sampling.num_steps = 1000
    return config
