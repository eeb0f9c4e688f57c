"""A ControlNet on scikit-learn's digits that hears edges, beside the model of ``configs/vp/digits.py``."""

from ml_collections import ConfigDict

from configs.control.family import controlled
from configs.vp import digits


def get_config() -> ConfigDict:
    """Edges at three quarters of the steepness of an edge from black to white."""
    config = controlled(digits.get_config(), "runs/vp/digits", options="threshold=0.75")
    config.training.update({"num_steps": 800, "checkpoint_every": 100, "keep_checkpoints": 8, "sample_every": 0})
    config.sampling.update({"sampler": "ddim", "num_steps": 50})
    return config
