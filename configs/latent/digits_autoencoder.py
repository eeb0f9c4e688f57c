"""An autoencoder of scikit-learn's digits: 8x8 images, latents of 4x4x4 numbers."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A small network whose decoder says how probable each grey level is; a minute or two on a laptop's CPU."""
    config = get_default_config()
    config.data.dataset = "digits"
    config.model.update(
        {
            "backbone": "autoencoder",
            "channels": 16,
            "channel_mult": (1, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (),
            "norm_groups": 4,
            "dropout": 0.1,
            "network": {"latent_channels": 4, "bottleneck": "diagonal", "pixels": "levels"},
        }
    )
    config.training.update(
        {
            "num_steps": 2_500,
            "batch_size": 64,
            "precision": "fp32",
            "ema_decay": 0.999,
            "checkpoint_every": 500,
            "log_every": 20,
            "sample_every": 0,
        }
    )
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 100, "decay_steps": 2_500})
    config.eval.update({"batch_size": 120})
    return config
