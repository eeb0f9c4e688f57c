"""Distribution matching distillation of ``configs/vp/mnist.py`` to a generator of one call."""

from ml_collections import ConfigDict

from configs.distill.family import distilled
from configs.vp import mnist


def get_config() -> ConfigDict:
    """Regression on the ends of the teacher's ODE as in DMD, and steps of the critic between as in DMD2."""
    config = distilled(mnist.get_config(), "distribution_matching", "runs/vp/mnist")
    config.distillation.update({"ratio": 2, "regression": 0.5, "regression_steps": 10})
    config.training.update({"num_steps": 12_000})
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 100, "decay_steps": 12_000})
    return config
