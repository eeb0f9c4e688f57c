"""Common settings of the configs of consistency models."""

from ml_collections import ConfigDict


def consistency(config: ConfigDict, loss: str, teacher: str = "") -> ConfigDict:
    """A config of a consistency model whose network, SDE and data are those of another config.

    Args:
        config: The config of the teacher.
        loss: One of the losses of consistency models.
        teacher: The teacher's work directory; "" for none.
    """
    config.model.answers = "consistency"
    config.training.loss = loss
    config.distillation.teacher = teacher
    config.sampling.update({"sampler": "consistency", "num_steps": 2})
    return config
