"""A classifier of scikit-learn's digits under the noise of configs/vp/digits.py, whose gradient guides its models."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp import digits


def get_config() -> ConfigDict:
    """A small encoder, one or two minutes on a laptop's CPU."""
    config = classifier_of(digits.get_config())
    config.model.update({"channels": 32, "channel_mult": (1, 2), "attention_resolutions": (4,)})
    config.training.update({"num_steps": 1_000, "batch_size": 64, "ema_decay": 0.995})
    config.optim.update({"warmup_steps": 100, "decay_steps": 1_000})
    return config


def classifier_of(config: ConfigDict) -> ConfigDict:
    """The config of a score model as that of a classifier of the same data under the same noise.

    The network is the encoder of Dhariwal and Nichol 2021 with a block a level. Weights decay as theirs do (Table 12):
    without, it learns its training images by heart.
    """
    config.model = get_default_config().model
    config.model.update(
        {
            "backbone": "classifier",
            "class_conditional": True,
            "num_res_blocks": 1,
            "dropout": 0.1,
            "scale_shift_norm": True,
        }
    )
    config.training.sample_every = 0
    config.optim.update({"name": "adamw", "weight_decay": 0.05, "learning_rate": 1e-3})
    return config
