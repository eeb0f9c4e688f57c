"""A classifier of MNIST under the noise of configs/vp/mnist.py, whose gradient guides its models."""

from ml_collections import ConfigDict

from configs.vp import mnist
from configs.vp.digits_classifier import classifier_of


def get_config() -> ConfigDict:
    """A small encoder, about ten minutes on one core of a CPU."""
    config = classifier_of(mnist.get_config())
    config.model.update({"channels": 16, "channel_mult": (1, 2, 4), "attention_resolutions": (7,)})
    config.training.update({"num_steps": 2_000, "batch_size": 64, "ema_decay": 0.995})
    config.optim.update({"warmup_steps": 100, "decay_steps": 2_000})
    return config
