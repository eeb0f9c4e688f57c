"""Progressive distillation of ``configs/vp/digits.py`` to 4 steps of DDIM."""

from ml_collections import ConfigDict

from configs.distill.family import distilled
from configs.vp import digits


def get_config() -> ConfigDict:
    """Students of 32, 16, 8 and 4 steps, the first of a teacher of 64."""
    config = distilled(digits.get_config(), "runs/vp/digits", answers="steps", parameterization="v")
    config.distillation.update({"stages": (32, 16, 8, 4), "stage_steps": 400})
    config.training.update(
        {
            "loss": "progressive_distillation",
            "num_steps": 1_600,
            # each stage's last student is kept
            "checkpoint_every": 400,
            "keep_checkpoints": 4,
            "ema_decay": 0.99,
            "sample_every": 400,
        }
    )
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 50})
    config.sampling.update({"sampler": "ddim", "num_steps": 4})
    return config
