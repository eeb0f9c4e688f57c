"""A consistency model of digits, tuned from the model of ``configs/vp/digits.py``: two calls a sample."""

from ml_collections import ConfigDict

from configs.distill.family import consistency
from configs.vp import digits


def get_config() -> ConfigDict:
    """Geng et al. 2024's tuning, whose gap halves every 80 steps."""
    config = consistency(digits.get_config(), "consistency_tuning", "runs/vp/digits")
    config.distillation.double_every = 80
    config.training.update({"num_steps": 500, "checkpoint_every": 100, "keep_checkpoints": 5, "sample_every": 0})
    config.training.step_sampling = "low_discrepancy"
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 50, "decay_steps": 500})
    # sigma / alpha of 18 and 0.9; the network gives eps, of whose errors the 254 at t = 1 would make much
    config.sampling.update({"grid": "quadratic", "options": "t_start=0.7"})
    return config
