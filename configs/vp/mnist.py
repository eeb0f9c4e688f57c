"""DDPM on MNIST, 28x28, 256 grey levels."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """The U-Net of Ho et al. 2020, made small, on their table."""
    config = get_default_config()
    config.sde.update({"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    mnist_network(config)
    return config


def mnist_network(config: ConfigDict) -> None:
    """The network and its training, which the other families share."""
    config.data.dataset = "mnist"
    config.model.update(
        {
            "channels": 32,
            "channel_mult": (1, 2, 2),
            "num_res_blocks": 1,
            "attention_resolutions": (7,),
            "norm_groups": 8,
            "dropout": 0.0,
        }
    )
    config.training.update(
        {"num_steps": 10_000, "batch_size": 32, "ema_decay": 0.999, "checkpoint_every": 500, "sample_every": 1_000}
    )
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 200})
    config.eval.vlb_steps_per_image = 20
