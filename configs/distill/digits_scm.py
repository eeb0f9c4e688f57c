"""A consistency model of digits in continuous time, distilled from the model of ``configs/vp/digits.py``."""

from ml_collections import ConfigDict

from configs.distill.family import consistency
from configs.vp import digits


def get_config() -> ConfigDict:
    """Lu & Song 2024's sCD, whose tangent warms up over the first half."""
    config = consistency(digits.get_config(), "scm", "runs/vp/digits")
    config.distillation.double_every = 250
    config.training.update({"num_steps": 500, "checkpoint_every": 100, "keep_checkpoints": 5, "sample_every": 0})
    config.training.step_sampling = "low_discrepancy"
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 50, "decay_steps": 500})
    # sigma / alpha of 18 and 0.9; the network gives eps, of whose errors the 254 at t = 1 would make much
    config.sampling.update({"grid": "quadratic", "options": "t_start=0.7"})
    return config
