"""Song et al. 2023, the EDM model that ImageNet 64x64's consistency models are distilled of: edm_imagenet64_ema.pt."""

from ml_collections import ConfigDict

from configs.pretrained.family import pretrained


def get_config() -> ConfigDict:
    """The flags of the project's launch.sh: 40 of its steps of Heun's method, 39 here and the final denoising."""
    flags = (
        "--training_mode edm --attention_resolutions 32,16,8 --class_cond True --use_scale_shift_norm True "
        "--dropout 0.1 --image_size 64 --num_channels 192 --num_head_channels 64 --num_res_blocks 3 "
        "--resblock_updown True --use_fp16 True --weight_schedule karras"
    )
    config = pretrained("consistency_models", flags, image_size=64)
    config.sampling.update({"sampler": "heun", "grid": "karras", "num_steps": 39, "clip_x0": True})
    return config
