"""A classifier of CIFAR-10 under the noise of configs/vp/cifar10.py, whose gradient guides its models."""

from ml_collections import ConfigDict

from configs.vp import cifar10
from configs.vp.digits_classifier import classifier_of


def get_config() -> ConfigDict:
    """The encoder of Dhariwal and Nichol 2021 at the widths of Ho et al.'s network for CIFAR-10."""
    config = classifier_of(cifar10.get_config())
    config.model.update({"channels": 128, "channel_mult": (1, 2, 2, 2), "num_res_blocks": 2, "head_channels": 64})
    config.model.attention_resolutions = (16, 8)
    config.training.update({"num_steps": 100_000, "ema_decay": 0.999})
    # theirs (Table 12)
    config.optim.update({"learning_rate": 3e-4, "warmup_steps": 1_000, "decay_steps": 100_000})
    return config
