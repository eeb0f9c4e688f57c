"""An autoencoder of CIFAR-10: 32x32 images, latents of 8x8x4 numbers."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """The layout of Stable Diffusion's autoencoder with two halvings and half of its width."""
    config = get_default_config()
    config.data.update({"dataset": "cifar10", "random_flip": True})
    config.model.update(
        {
            "backbone": "autoencoder",
            "channels": 64,
            "channel_mult": (1, 2, 4),
            "attention_resolutions": (),
            "dropout": 0.0,
            "network": {"latent_channels": 4, "bottleneck": "diagonal", "pixels": "gaussian"},
        }
    )
    config.training.update({"num_steps": 100_000, "batch_size": 128, "ema_decay": 0.999, "sample_every": 0})
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 1_000, "decay_steps": 100_000})
    config.eval.batch_size = 100
    return config
