"""DDPM on CIFAR-10 with the settings of Ho et al. 2020, Appendix B: 35,746,307 parameters, 800k steps."""

from ml_collections import ConfigDict

from configs.default import get_default_config


def get_config() -> ConfigDict:
    """Ho et al.'s table, network and training."""
    config = get_default_config()
    config.sde.update({"num_steps": 1000, "beta_start": 1e-4, "beta_end": 0.02})
    cifar10_network(config)
    return config


def cifar10_network(config: ConfigDict) -> None:
    """The network and its training, which the other families share."""
    config.data.update({"dataset": "cifar10", "random_flip": True})
    config.model.dropout = 0.1
    config.training.update({"num_steps": 800_000, "batch_size": 128, "ema_decay": 0.9999})
    config.optim.update({"learning_rate": 2e-4, "warmup_steps": 5_000})
    config.eval.vlb_steps_per_image = 20
