"""Song et al. 2023, consistency models of LSUN 256x256: cd_{bedroom,cat}256_{l2,lpips}.pt, ct_{bedroom,cat}256.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import consistency


def get_config() -> ConfigDict:
    """The flags of the project's launch.sh."""
    flags = (
        "--training_mode consistency_distillation --attention_resolutions 32,16,8 --class_cond False "
        "--use_scale_shift_norm False --dropout 0.0 --image_size 256 --num_channels 256 --num_head_channels 64 "
        "--num_res_blocks 2 --resblock_updown True --use_fp16 True --weight_schedule uniform"
    )
    return consistency(flags, image_size=256)
