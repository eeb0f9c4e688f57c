"""A consistency model of MNIST, tuned from the model of ``configs/vp/mnist.py``: two calls a sample."""

from ml_collections import ConfigDict

from configs.distill.family import consistency
from configs.vp import mnist


def get_config() -> ConfigDict:
    """Geng et al. 2024's tuning, whose gap halves every 600 steps."""
    config = consistency(mnist.get_config(), "consistency_tuning", "runs/vp/mnist")
    config.distillation.double_every = 600
    config.training.update({"num_steps": 4_000, "sample_every": 0, "step_sampling": "low_discrepancy"})
    config.optim.update({"learning_rate": 5e-4, "decay_steps": 4_000})
    return config
