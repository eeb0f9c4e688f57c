"""Diffusion of the latents of configs/latent/cifar10_autoencoder.py, which is to be trained before."""

from ml_collections import ConfigDict

from configs.latent import digits


def get_config() -> ConfigDict:
    """The settings of configs/latent/digits.py with a wider U-Net on 8x8x4 latents."""
    config = digits.get_config()
    config.data.update({"dataset": "cifar10", "first_stage": "runs/latent/cifar10_autoencoder"})
    config.model.update(
        {
            "channels": 128,
            "channel_mult": (1, 2),
            "num_res_blocks": 2,
            "attention_resolutions": (8, 4),
            "norm_groups": 32,
        }
    )
    config.training.update({"num_steps": 200_000, "batch_size": 128, "ema_decay": 0.9999, "checkpoint_every": 5_000})
    config.optim.update({"learning_rate": 2e-4, "warmup_steps": 5_000})
    config.eval.update({"batch_size": 200, "vlb_steps_per_image": 20})
    return config
