"""An autoencoder of MNIST: 28x28 images of 256 grey levels, latents of 7x7x4 numbers."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """A small network whose decoder says how probable each grey level is."""
    config = get_default_config()
    config.data.dataset = "mnist"
    config.model.update(
        {
            "backbone": "autoencoder",
            "channels": 16,
            "channel_mult": (1, 2, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (),
            "norm_groups": 8,
            "dropout": 0.0,
            "network": {"latent_channels": 4, "bottleneck": "diagonal", "pixels": "levels"},
        }
    )
    config.training.update(
        {"num_steps": 4_000, "batch_size": 32, "ema_decay": 0.999, "checkpoint_every": 500, "sample_every": 0}
    )
    config.optim.update({"learning_rate": 2e-3, "warmup_steps": 100, "decay_steps": 4_000})
    config.eval.update({"batch_size": 100})
    return config
