"""A ControlNet on CIFAR-10 that hears edges, beside the model of ``configs/vp/cifar10.py``, trained or imported."""

from ml_collections import ConfigDict

from configs.control.family import controlled
from configs.vp import cifar10


def get_config() -> ConfigDict:
    """Edges at three tenths of the steepness of an edge from black to white."""
    config = controlled(cifar10.get_config(), "runs/vp/cifar10", options="threshold=0.3")
    config.training.update({"num_steps": 100_000, "ema_decay": 0.9999})
    config.sampling.update({"sampler": "ddim", "num_steps": 50})
    return config
