"""Improved DDPM on CIFAR-10 (Nichol & Dhariwal 2021): L_hybrid, cosine table of 4000 steps, 500k steps."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """Their network and training; 2.94 bits/dim with L_vlb and 3.17 with L_hybrid in their Table 2."""
    config = get_default_config()
    config.sde.update({"name": "improved_ddpm", "num_steps": 4000})
    config.data.update({"dataset": "cifar10", "random_flip": False})
    config.model.update(
        {
            "num_res_blocks": 3,
            "attention_resolutions": (16, 8),
            "num_heads": 4,
            "dropout": 0.3,
            "scale_shift_norm": True,
            "norm_eps": 1e-5,
            "embedding": "cos_first",
            "symmetric_downsample": True,
            "learned_variance": True,
        }
    )
    config.training.update(
        {"loss": "hybrid", "num_steps": 500_000, "batch_size": 128, "ema_decay": 0.9999, "grad_clip": 0.0}
    )
    config.optim.update({"learning_rate": 1e-4, "warmup_steps": 0})
    config.eval.vlb_steps_per_image = 20
    return config
