"""Nichol and Dhariwal 2021, LSUN bedroom 256x256: lsun_uncond_100M_1200K_bs128 and lsun_uncond_100M_2400K_bs64."""

from ml_collections import ConfigDict

from configs.pretrained.family import openai


def get_config() -> ConfigDict:
    """The flags of the project's README."""
    flags = (
        "--image_size 256 --num_channels 128 --num_res_blocks 2 --num_heads 1 --learn_sigma True "
        "--use_scale_shift_norm False --attention_resolutions 16 --diffusion_steps 1000 --noise_schedule linear "
        "--rescale_learned_sigmas False --rescale_timesteps False"
    )
    return openai("improved_diffusion", flags, image_size=256)
