"""Progressive distillation of ``configs/vp/mnist.py`` to 4 steps of DDIM."""

from ml_collections import ConfigDict

from configs.distill.family import distilled
from configs.vp import mnist


def get_config() -> ConfigDict:
    """Students of 32, 16, 8 and 4 steps, the first of a teacher of 64."""
    config = distilled(mnist.get_config(), "progressive_distillation", "runs/vp/mnist")
    config.distillation.update({"stages": (32, 16, 8, 4), "stage_steps": 1_500})
    config.training.update(
        {
            "num_steps": 6_000,
            # each stage's last student is kept
            "checkpoint_every": 1_500,
            "keep_checkpoints": 4,
        }
    )
    config.optim.update({"learning_rate": 5e-4, "warmup_steps": 100})
    return config
