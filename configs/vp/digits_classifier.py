"""A classifier of scikit-learn's digits under the noise of configs/vp/digits.py, whose gradient guides its models."""

from ml_collections import ConfigDict

from configs.default import get_default_config
from configs.vp import digits


def get_config() -> ConfigDict:
    """The encoder of Dhariwal and Nichol 2021, made small, on the SDE of the digits."""
    config = digits.get_config()
    config.model = get_default_config().model
    classifier(config, channels=32, channel_mult=(1, 2), attention_resolutions=(4,))
    config.training.update({"num_steps": 1_500, "batch_size": 64})
    config.optim.update({"learning_rate": 1e-3, "warmup_steps": 100, "decay_steps": 1_500})
    return config


def classifier(
    config: ConfigDict, *, channels: int, channel_mult: tuple[int, ...], attention_resolutions: tuple[int, ...]
) -> None:
    """A classifier of the classes of ``config.data``, instead of a score model of the same data and SDE.

    Args:
        config: The config of the score model.
        channels: Width of the first level.
        channel_mult: Width of each level, as a multiple of ``channels``.
        attention_resolutions: Resolutions of the levels with attention.
    """
    config.model.update(
        {
            "backbone": "classifier",
            "class_conditional": True,
            "channels": channels,
            "channel_mult": channel_mult,
            "num_res_blocks": 1,
            "attention_resolutions": attention_resolutions,
            "head_channels": 32,
            "dropout": 0.1,
            "scale_shift_norm": True,
        }
    )
    # without decay it learns its training images by heart (Dhariwal and Nichol 2021, Table 12)
    config.optim.update({"name": "adamw", "weight_decay": 0.05})
    config.training.sample_every = 0
