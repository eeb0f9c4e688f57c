"""A ControlNet on MNIST that hears edges, beside the model of ``configs/vp/mnist.py``."""

from ml_collections import ConfigDict

from configs.control.family import controlled
from configs.vp import mnist


def get_config() -> ConfigDict:
    """Edges at six tenths of the steepness of an edge from black to white."""
    config = controlled(mnist.get_config(), "runs/vp/mnist", options="threshold=0.6")
    config.training.update({"num_steps": 800, "checkpoint_every": 100, "keep_checkpoints": 8, "sample_every": 0})
    config.sampling.update({"sampler": "ddim", "num_steps": 50})
    return config
