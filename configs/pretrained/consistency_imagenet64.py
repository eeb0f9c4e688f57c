"""Song et al. 2023, consistency models of ImageNet 64x64: cd_imagenet64_{l2,lpips}.pt, ct_imagenet64.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import consistency


def get_config() -> ConfigDict:
    """The flags of the project's launch.sh."""
    flags = (
        "--training_mode consistency_distillation --attention_resolutions 32,16,8 --class_cond True "
        "--use_scale_shift_norm True --dropout 0.0 --image_size 64 --num_channels 192 --num_head_channels 64 "
        "--num_res_blocks 3 --resblock_updown True --use_fp16 True --weight_schedule uniform"
    )
    return consistency(flags, image_size=64)
