"""Progressive distillation of ``configs/vp/digits.py`` to 4 steps of DDIM."""

from ml_collections import ConfigDict

from configs.distill.family import distilled
from configs.vp import digits


def get_config() -> ConfigDict:
    """Students of 16, 8 and 4 steps, the first of a teacher of 32."""
    config = distilled(digits.get_config(), "progressive_distillation", "runs/vp/digits")
    config.distillation.update({"stages": (16, 8, 4), "stage_steps": 400})
    config.training.update(
        {
            "num_steps": 1_200,
            # each stage's last student is kept
            "checkpoint_every": 400,
            "keep_checkpoints": 3,
            "ema_decay": 0.995,
        }
    )
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 50})
    return config
