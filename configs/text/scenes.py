"""Pictures of two coloured digits by their captions, in words that the network learns: the demo of text to image."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A U-Net on 16x16 scenes that attends to words; guided by 2 its samples are more as told."""
    config = get_default_config()
    config.sde.update({"num_steps": 1000, "beta_start": 2e-3, "beta_end": 0.02})
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
            "parameterization": "v",
            "condition_dropout": 0.1,
        }
    )
    config.training.update(
        {"num_steps": 2_400, "batch_size": 64, "precision": "fp32", "ema_decay": 0.999, "checkpoint_every": 500}
    )
    config.optim.update({"learning_rate": 1.5e-3, "warmup_steps": 200, "decay_steps": 2_400})
    config.sampling.update({"sampler": "ddim", "num_steps": 50, "num_samples": 16})
    config.eval.update({"batch_size": 100, "vlb_steps_per_image": 20})
    return config
