"""A consistency model of digits, distilled from the model of ``configs/vp/digits.py`` by Heun steps."""

from ml_collections import ConfigDict

from configs.distill.family import consistency
from configs.vp import digits


def get_config() -> ConfigDict:
    """Song et al. 2023's distillation, on 10 noise levels at first and 80 in the end."""
    config = consistency(digits.get_config(), "consistency_distillation", "runs/vp/digits")
    config.distillation.update({"noise_levels": (10, 80), "double_every": 125})
    config.training.update({"num_steps": 500, "checkpoint_every": 100, "keep_checkpoints": 5, "sample_every": 0})
    config.training.step_sampling = "low_discrepancy"
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 50, "decay_steps": 500})
    # sigma / alpha of 18 and 0.9; the network gives eps, of whose errors the 254 at t = 1 would make much
    config.sampling.update({"grid": "quadratic", "options": "t_start=0.7"})
    return config
