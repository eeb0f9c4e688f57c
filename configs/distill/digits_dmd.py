"""Distribution matching distillation of ``configs/vp/digits.py`` to a generator of one call."""

from ml_collections import ConfigDict

from configs.distill.family import distilled
from configs.vp import digits


def get_config() -> ConfigDict:
    """DMD with regression on the ends of the teacher's ODE, and two time scales as DMD2."""
    config = distilled(digits.get_config(), "runs/vp/digits", answers="generator", parameterization="v")
    config.distillation.update({"ratio": 5, "regression": 0.25})
    config.training.update(
        {
            "loss": "distribution_matching",
            "num_steps": 3_000,
            "checkpoint_every": 500,
            "ema_decay": 0.99,
            "sample_every": 0,
        }
    )
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 50})
    config.sampling.update({"sampler": "consistency", "num_steps": 1})
    return config
