"""Common settings of the configs of distillations."""

from typing import Any

from ml_collections import ConfigDict


def distilled(config: ConfigDict, teacher: str, **model: Any) -> ConfigDict:
    """A config of a student of another config's model: its network and SDE are those of the model.

    Args:
        config: The config of the teacher, whose data and settings of training are kept.
        teacher: The teacher's work directory.
        **model: What of ``config.model`` the student has otherwise; it has no dropout.
    """
    config.distillation.teacher = teacher
    config.model = ConfigDict({"backbone": "teacher", "dropout": 0.0, **model})
    config.sde = ConfigDict()
    return config
