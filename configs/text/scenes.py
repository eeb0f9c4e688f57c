"""Pictures of two coloured digits by their captions, in words that the network learns: the demo of text to image."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A U-Net on 16x16 scenes that attends to words; guided by 2 its samples are more as told."""
    config = get_default_config()
    # where an object stands, its size and its digit are decided at high and middle noise: these weights and times train
    # there, where an error in eps of weight 1 hardly counts
    config.sde.name = "vp_cosine"
    config.data.update({"dataset": "scenes", "condition": ("text",), "condition_options": "max_words=12"})
    config.model.update(
        {
            "channels": 32,
            "channel_mult": (1, 2, 4),
            "num_res_blocks": 1,
            "attention_resolutions": (8, 4),
            "num_heads": 4,
            "norm_groups": 8,
            "dropout": 0.0,
            "scale_shift_norm": True,
            "parameterization": "v",
            "condition_dropout": 0.1,
        }
    )
    config.training.update(
        {
            "num_steps": 3_000,
            "batch_size": 32,
            "weighting": "v",
            "step_sampling": "logit_normal",
            "precision": "fp32",
            "ema_decay": 0.999,
            "checkpoint_every": 500,
        }
    )
    config.optim.update({"learning_rate": 3e-3, "warmup_steps": 200, "decay_steps": 3_000})
    config.sampling.update({"sampler": "ddim", "num_steps": 50, "num_samples": 16})
    config.eval.update({"batch_size": 100, "vlb_steps_per_image": 20})
    return config
