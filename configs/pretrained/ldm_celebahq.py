"""Rombach et al. 2022, CelebA-HQ 256x256: model.ckpt of latent-diffusion's celeba.zip; see ldm_celebahq_vq.py."""

from ml_collections import ConfigDict

from configs.pretrained.family import latent_diffusion


def get_config() -> ConfigDict:
    """Arguments of its U-Net and of its schedule, as the project's config.yaml says them."""
    flags = (
        "--image_size 64 --in_channels 3 --out_channels 3 --model_channels 224 --attention_resolutions 8,4,2 "
        "--num_res_blocks 2 --channel_mult 1,2,3,4 --num_head_channels 32 --linear_start 0.0015 --linear_end 0.0195"
    )
    return latent_diffusion("latent_diffusion", flags, first_stage="ldm_celebahq_vq", image_size=256)
