"""A ControlNet on scenes that hears edges, beside the model of captions of ``configs/text/scenes.py``."""

from ml_collections import ConfigDict

from configs.control.family import controlled
from configs.text import scenes


def get_config() -> ConfigDict:
    """A caption and edges, obeyed together."""
    options = f"{scenes.get_config().data.condition_options}, threshold=0.5"
    config = controlled(scenes.get_config(), "runs/text/scenes", condition=("text", "edges"), options=options)
    config.training.update({"num_steps": 300, "checkpoint_every": 100, "sample_every": 0})
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 50, "decay_steps": 300})
    return config
